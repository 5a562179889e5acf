import {
  assert,
  assertAlmostEquals,
  assertEquals,
  assertStringIncludes,
} from "@std/assert";
import { eachBackend } from "../backends/each_backend.ts";
import { stdFlags } from "../offline_std/std_flags.ts";
import {
  boundOf,
  cacheBytes,
  decodeWork,
  prefillWork,
} from "./speed/bounds.ts";
import { median } from "./speed/clock.ts";
import { planCells, sectionNames } from "./speed/plan.ts";
import { RandomBlock } from "./speed/random_block.ts";
import type { Result } from "./speed/results.ts";
import { matrixElements, readShape } from "./speed/shapes.ts";
import { summarize } from "./speed/summary.ts";
import { speedWeights } from "./speed/weights.ts";

const STEPS = 3;
const ROUNDS = 2;
/** Decode steps of one decoder, with the round that warms up. */
const DECODED = STEPS * (ROUNDS + 1);
const CACHES = [{ policy: "full", slots: 48 }, { policy: "keepkv", slots: 32 }];

eachBackend("measurements do what they say", async (backend, { label }) => {
  // Decodes some 800 steps, which is too much for an emulated device.
  const flat = !label.includes("emulated");
  const config = await readShape("tiny");
  using weights = speedWeights(backend, config);
  const setup = { backend, shape: "tiny", config, weights };
  const before = backend.bytesAllocated;
  const cells = planCells({
    sections: sectionNames.filter((name) => flat || name !== "flat"),
    ...{ caches: CACHES, batches: [1, 2] },
    ...{ steps: STEPS, rounds: ROUNDS, tokens: 1 },
    ...{ prompt: 48, chunks: [16], memory: 2 ** 20 },
    ceilings: { stream: 1e9 },
  });
  const results: Result[] = [];
  for (const { run } of cells) results.push(...await run(setup));

  const find = (section: string, cache: string, batch: number) =>
    results.find((r) =>
      r.section === section && r.cache === cache && r.batch === batch
    )!;
  const heads = config.layers * config.sizes.kvHeads;
  for (const batch of [1, 2]) {
    const keep = find("decode", "keepkv:32", batch);
    // The first token of a sequence takes the place of another one as well.
    const merges = heads * batch * (DECODED + 1);
    assertEquals(keep.more!.merges, merges);
    assertEquals(keep.more!.liveSlots, 32);
    const full = find("decode", "full:48", batch);
    assertEquals(full.more!.merges, 0);
    assertEquals(full.more!.drops, 0);
    assertEquals(full.more!.liveSlots, 48 + (DECODED + 1) / 2);
    assertEquals(
      keep.bytes! - batch * cacheBytes(setup, 32),
      full.bytes! - batch * cacheBytes(setup, 48),
    );

    assertEquals(find("merging", "keepkv:32", batch).more!.merges, merges);
    const room = find("merging", "keepkv:32, room", batch);
    assertEquals(room.more!.merges, 0);
    assertEquals(room.more!.liveSlots, 32 + (DECODED + 1) / 2);
    assertEquals(find("merging", "full:32", batch).more!.merges, 0);

    const attend = find("attend", "keepkv:32", batch);
    assertEquals(attend.more!.merges, heads * batch * DECODED);
    assertEquals(attend.more!.liveSlots, 32);
  }
  const prefill = find("prefill", "keepkv:32, chunk 16", 1);
  assertEquals(prefill.more!.liveSlots, 32);
  assertEquals(find("prefill", "full:48, chunk 16", 1).more!.liveSlots, 48);
  if (flat) {
    const { tokens } = find("flat", "keepkv:32", 1).more!;
    assertEquals(tokens, 50 * backend.stepsPerRead);
  }
  const largest = results.filter(({ section }) => section === "largest");
  assertEquals(largest.length, 2);
  assert(largest[1]!.batch > largest[0]!.batch, "a small cache fits oftener");
  for (const { rounds, ms, section } of results) {
    // Only a difference of two times can come out below 0.
    assert(section === "attend" || rounds.every((time) => time > 0));
    assertEquals(ms, median(rounds));
  }
  assertEquals(summarize(results).length, 2 + 2 + 1 + (flat ? 1 : 0));
  const left = backend.bytesAllocated - before;
  assert(left < 2 ** 16, `${left} bytes are left: more than staging memory`);
});

eachBackend(
  "random memory is normal and repeats nothing near",
  async (backend) => {
    using block = new RandomBlock(backend, 1);
    using buffer = backend.allocate("keys", "half", 2 ** 16);
    using other = backend.allocate("values", "half", 2 ** 16);
    for (const halves of [buffer, other]) {
      block.fillHalves(halves, { columns: 64, deviation: 2 });
    }
    const { f32 } = await backend.read(buffer);
    const mean = f32.reduce((a, b) => a + b) / f32.length;
    const square = f32.reduce((a, b) => a + b * b) / f32.length;
    // Of 65536 draws the mean strays by 2/256 and the mean square by 4·√2/256:
    // five times that, and the 1 % by which the quantiles are off.
    assertAlmostEquals(mean, 0, 0.04);
    assertAlmostEquals(square, 4, 0.15);
    assert(f32.every((x) => Math.f16round(x) === x));
    const values = (await backend.read(other)).f32;
    const same = f32.filter((x, i) => x === values[i]).length;
    assert(same < f32.length / 50, `${same} values are the same`);
  },
);

Deno.test("shapes move the bytes that their weights and caches have", async () => {
  // GB of 16-bit weights that a step reads, and of a cache of 32768 tokens:
  // what the published sizes of the models amount to.
  const known = [
    ["llama-3.1-8b", 15.0, 4.29],
    ["qwen2.5-1.5b", 3.09, 0.94],
    ["qwen2.5-0.5b", 0.99, 0.4],
  ] as const;
  for (const [name, weightGB, cacheGB] of known) {
    const config = await readShape(name);
    const { layers, head } = matrixElements(config);
    assertAlmostEquals(2 * (layers + head) / 1e9, weightGB, 0.02);
    const { kvHeads, headDim } = config.sizes;
    const bytes = config.layers * 4 * kvHeads * headDim * 32_768;
    assertAlmostEquals(bytes / 1e9, cacheGB, 0.01);
  }
});

Deno.test("work and bounds follow from sizes", async () => {
  const { CpuBackend } = await import("../../src/backends/cpu/cpu_backend.ts");
  await using backend = new CpuBackend();
  const config = await readShape("tiny");
  using weights = speedWeights(backend, config);
  const setup = { backend, shape: "tiny", config, weights };
  const { layers, head } = matrixElements(config);
  const { heads, kvHeads, headDim } = config.sizes;
  const one = decodeWork(setup, { slots: 10, batch: 1 });
  const three = decodeWork(setup, { slots: 10, batch: 3 });
  assertEquals(three.operations, 3 * one.operations);
  assertEquals(
    one.operations,
    2 * (layers + head) + config.layers * heads * 4 * headDim * 10,
  );
  assertEquals(
    three.bytes - one.bytes,
    2 * config.layers * 2 * kvHeads * headDim * 4 * 10,
  );
  const prompt = { tokens: 20, chunk: 10 };
  const full = prefillWork(setup, {
    ...prompt,
    cache: { policy: "full", slots: 20 },
  });
  const causal = 20 * 21 / 2;
  assertEquals(
    full.operations,
    2 * (20 * layers + head) + config.layers * heads * 4 * headDim * causal,
  );
  const small = prefillWork(setup, {
    ...prompt,
    cache: { policy: "keepkv", slots: 4 },
  });
  assertEquals(
    full.operations - small.operations,
    config.layers * heads * 4 * headDim * 10 * 6,
  );
  assertEquals(boundOf(one, {}), undefined);
  const work = { bytes: 5e9, operations: 2e12 };
  assertEquals(boundOf(work, { stream: 1e12 }), 5);
  assertEquals(boundOf(work, { stream: 1e12, matrix: 1e14 }), 20);
});

async function runSpeed(
  ...args: string[]
): Promise<{ code: number; stdout: string; stderr: string }> {
  const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: [
      ...["run", "--no-check", "--no-prompt", "--allow-read"],
      "--allow-write",
      ...await stdFlags(),
      ...["tests/bench/speed.ts", ...args],
    ],
    stdin: "null",
  }).output();
  const decoder = new TextDecoder();
  return {
    code,
    stdout: decoder.decode(stdout),
    stderr: decoder.decode(stderr),
  };
}

Deno.test("the command prints lines and writes them to a file", async () => {
  const json = await Deno.makeTempFile();
  try {
    const { code, stdout } = await runSpeed(
      ...["--backend", "cpu", "--shapes", "tiny", "--steps", "2"],
      ...["--sections", "decode,largest", "--caches", "full:24,keepkv:16"],
      ...["--rounds", "3", "--stream", "10", "--json", json],
    );
    assertEquals(code, 0);
    assertStringIncludes(stdout, "bytes allow");
    assertStringIncludes(stdout, "not measured: RangeError: Cannot look for");
    const { backend, ceilings, results, failures } = JSON.parse(
      await Deno.readTextFile(json),
    );
    assertEquals([backend, ceilings], ["cpu", { stream: 1e10 }]);
    assertEquals(results.length, 2);
    assertEquals(results[0].rounds.length, 3);
    assertEquals(failures.length, 2);
  } finally {
    await Deno.remove(json);
  }
});

Deno.test("the command begins nothing when its time is over", async () => {
  const { code, stdout } = await runSpeed(
    ...["--backend", "cpu", "--shapes", "tiny", "--seconds", "0"],
    ...["--caches", "keepkv:32,keepkv:33"],
  );
  assertEquals(code, 1);
  assertStringIncludes(stdout, "keepkv:33, batch 1: not measured: there was");
});

Deno.test("a command line that is wrong is explained", async () => {
  for (
    const [flag, value, expected] of [
      ["caches", "best:5", "a list such as full:512,keepkv:3277"],
      ["sections", "decode,all", "a list of decode, merging, attend"],
      ["batches", "1,0", "a list of whole numbers above 0"],
    ] as const
  ) {
    const { code, stderr } = await runSpeed(`--${flag}`, value);
    assertEquals(code, 2);
    assertStringIncludes(
      stderr,
      `Cannot use --${flag} ${value}: expected ${expected}`,
    );
  }
});
