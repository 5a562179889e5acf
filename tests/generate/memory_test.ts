/**
 * Endless generation in constant memory, in a process of its own.
 */
import { assert, assertEquals } from "@std/assert";
import { fromFileUrl } from "@std/path";
import { candidates } from "../backends/each_backend.ts";
import { stdFlags } from "../offline_std/std_flags.ts";
import type { MemorySample } from "./memory_probe.ts";

/**
 * Tokens per backend. A full cache of the probe's model would take 2 layers of
 * 2 heads with 2 · 16 numbers of 4 bytes for each: 512 bytes a token, beside
 * 112 bytes of side fields.
 */
const TOKENS = { cpu: 20_000, webgpu: 5_000, cuda: 20_000 };
const BUDGET = 256;
const FULL_CACHE_BYTES = 624;

async function probe(name: string, tokens: number): Promise<MemorySample[]> {
  const { stdout, stderr, success } = await new Deno.Command(Deno.execPath(), {
    args: [
      ...["run", "-A", "--v8-flags=--expose-gc", ...await stdFlags()],
      fromFileUrl(new URL("memory_probe.ts", import.meta.url)),
      ...[name, String(tokens), String(BUDGET)],
    ],
  }).output();
  const errors = new TextDecoder().decode(stderr);
  assert(success, errors);
  return JSON.parse(new TextDecoder().decode(stdout));
}

for (const { name, unavailable } of candidates) {
  const tokens = TOKENS[name];
  Deno.test({
    name: `${tokens} tokens at budget ${BUDGET} take constant memory [${name}]${
      unavailable ? ` (ignored: ${unavailable})` : ""
    }`,
    ignore: unavailable !== undefined,
    async fn() {
      const samples = await probe(name, tokens);
      assertEquals(samples.length, 8);
      assertEquals(samples.at(-1)!.tokens, tokens);
      for (const { slots } of samples) assertEquals(slots, BUDGET);
      assertEquals(new Set(samples.map(({ device }) => device)).size, 1);
      // The first half warms up. What the second half may add is a tenth of
      // what a cache that grows would add in the same time.
      const [warm, end] = [samples[3]!, samples[7]!];
      const growth = tokens / 2 * FULL_CACHE_BYTES;
      assert(end.heap - warm.heap < growth / 10, JSON.stringify(samples));
      // Resident memory moves by whole regions of the collector's heap.
      assert(
        end.resident - warm.resident < growth / 10 + 32 * 2 ** 20,
        JSON.stringify(samples),
      );
    },
  });
}
