/**
 * Damages valid model folders at random, the same way in every run. Whatever
 * the damage, a folder loads or is rejected with a `ModelFormatError`.
 */
import { assert, assertEquals, assertLess } from "@std/assert";
import { ModelFormatError } from "../../src/errors.ts";
import { openModelFolder } from "../../src/model/model_folder.ts";
import { LENGTH_BYTES } from "../../src/model/safetensors.ts";
import { loadWeights } from "../../src/model/weights.ts";
import { FakeBackend } from "./fake_backend.ts";
import {
  concat,
  type Files,
  shardedFiles,
  TestFolder,
  tinyFiles,
  withHeader,
} from "./fixtures.ts";

/** Damaged versions of each file. */
const ROUNDS = 100;

type Random = (limit: number) => number;

/** Integers below a limit: a 32-bit Lehmer generator's upper bits. */
function seededRandom(seed: number): Random {
  let state = seed;
  return (limit) => {
    state = state * 48_271 % 2_147_483_647;
    return Math.floor(state / 2_147_483_647 * limit);
  };
}

const nasty: unknown[] = [
  ...[null, true, -1, 0, 1, 1.5, 3, 2 ** 31, 2 ** 53, 2 ** 60, -(2 ** 60)],
  ...["", "x", "../../x", "__proto__", "\0", "F16", "llama3"],
  ...[[], [[]], {}, [0, 2 ** 60], { type: "yarn" }],
];

/** Replaces, removes or copies one value somewhere in a JSON value. */
function damageJson(root: unknown, random: Random): unknown {
  const copy = structuredClone(root) as Record<string, unknown>;
  let at = copy;
  for (;;) {
    const keys = Object.keys(at);
    if (keys.length === 0) return copy;
    const key = keys[random(keys.length)]!;
    const child = at[key];
    const inner = typeof child === "object" && child !== null;
    if (inner && random(4) > 0) {
      at = child as Record<string, unknown>;
      continue;
    }
    const kind = random(4);
    if (kind === 0) delete at[key];
    else if (kind === 1) at[`${key}x`] = child;
    else at[key] = nasty[random(nasty.length)];
    return copy;
  }
}

/** Changes, cuts, removes or repeats bytes. */
function damageBytes(
  bytes: Uint8Array<ArrayBuffer>,
  random: Random,
): Uint8Array<ArrayBuffer> {
  const start = random(bytes.length);
  const end = Math.min(bytes.length, start + 1 + random(16));
  switch (random(4)) {
    case 0: {
      const copy = bytes.slice();
      copy[start] = copy[start]! ^ (1 << random(8));
      return copy;
    }
    case 1:
      return bytes.slice(0, start);
    case 2:
      return concat([bytes.subarray(0, start), bytes.subarray(end)]);
    default:
      return concat([bytes.subarray(0, end), bytes.subarray(start)]);
  }
}

/** Damages a file: as JSON, as the JSON of a header, or byte by byte. */
function damage(
  content: string | Uint8Array,
  { isJson, random }: { isJson: boolean; random: Random },
): Uint8Array {
  const bytes = typeof content === "string"
    ? new TextEncoder().encode(content)
    : content.slice();
  if (random(3) === 0) return damageBytes(bytes, random);
  if (isJson) {
    const json = JSON.parse(new TextDecoder().decode(bytes));
    return new TextEncoder().encode(JSON.stringify(damageJson(json, random)));
  }
  const length = new DataView(bytes.buffer).getUint32(0, true);
  const data = LENGTH_BYTES + length;
  const header = new TextDecoder().decode(bytes.subarray(LENGTH_BYTES, data));
  const json = damageJson(JSON.parse(header), random);
  return withHeader(JSON.stringify(json), bytes.subarray(data));
}

/** What becomes of a folder. */
async function tryToLoad(path: string): Promise<"loaded" | "rejected"> {
  const backend = new FakeBackend({ halfBytes: 2 });
  try {
    using model = await openModelFolder(path);
    using _ = await loadWeights(backend, model);
    const ids = model.tokenizer.encode("hello 日</s> world");
    assertEquals(typeof model.tokenizer.decode(ids), "string");
    return "loaded";
  } catch (error) {
    if (error instanceof ModelFormatError) {
      assert(error.file.startsWith(path), error.message);
      return "rejected";
    }
    throw error;
  } finally {
    assertEquals(backend.bytesAllocated, 0);
  }
}

const folders: [string, () => Files, string[]][] = [
  ["one file", tinyFiles, [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "model.safetensors",
  ]],
  ["shards", shardedFiles, [
    "model.safetensors.index.json",
    "model-00002-of-00002.safetensors",
  ]],
];

for (const [layout, makeFiles, names] of folders) {
  for (const [index, name] of names.entries()) {
    Deno.test(`a model in ${layout} with a damaged ${name} loads or is rejected`, async () => {
      const files = makeFiles();
      await using folder = await TestFolder.create(files);
      assertEquals(await tryToLoad(folder.path), "loaded");
      const random = seededRandom(1000 + index);
      let rejected = 0;
      for (let round = 0; round < ROUNDS; round++) {
        const isJson = name.endsWith(".json");
        await folder.write(name, damage(files[name]!, { isJson, random }));
        const start = performance.now();
        try {
          if (await tryToLoad(folder.path) === "rejected") rejected++;
        } catch (cause) {
          throw new Error(`Round ${round}`, { cause });
        }
        // A load takes milliseconds; seconds would be the start of a hang.
        assertLess(performance.now() - start, 5000, `round ${round}`);
      }
      assert(rejected > ROUNDS / 10, `only ${rejected} were rejected`);
    });
  }
}
