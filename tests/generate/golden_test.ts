/**
 * Parity with Hugging Face transformers: the shipped model, and a tiny random
 * model of every family (see tests/golden).
 */
import { assert, assertEquals } from "@std/assert";
import { fromFileUrl } from "@std/path";
import type { Backend } from "../../src/backends/backend.ts";
import { Engine } from "../../src/generate/engine.ts";
import { resolveSampling } from "../../src/generate/sampling.ts";
import { openCheckpoint } from "../../src/model/checkpoint.ts";
import { type ModelConfig, parseModelConfig } from "../../src/model/config.ts";
import { openModelFolder } from "../../src/model/model_folder.ts";
import { loadWeights, type Weights } from "../../src/model/weights.ts";
import { longestPiece } from "../../src/policies/schedule.ts";
import { fullCache } from "../../src/policies/full_cache.ts";
import type { Policy } from "../../src/policies/parts.ts";
import { eachBackend } from "../backends/each_backend.ts";
import { HalfCpuBackend } from "../backends/half_cpu_backend.ts";

/** Runs the model over ids; logits `(ids, vocabulary)`. */
async function allLogits(
  engine: Engine,
  ids: readonly number[],
  chunk: number,
): Promise<Float32Array[]> {
  const rows: Float32Array[] = [];
  for (let at = 0; at < ids.length; at += chunk) {
    const part = ids.slice(at, at + chunk);
    engine.prefill(part, { then: "logits" });
    const logits = await engine.readLogits(part.length);
    const width = logits.length / part.length;
    part.forEach((_, i) => rows.push(logits.slice(i * width, (i + 1) * width)));
  }
  return rows;
}

/** Greedy ids after a prompt that the cache holds, whose last logits are given. */
async function greedyIds(
  engine: Engine,
  last: Float32Array,
  steps: number,
): Promise<number[]> {
  const sampling = resolveSampling({ temperature: 0 }, {
    defaults: {},
    stopIds: [],
    vocabulary: last.length,
  });
  engine.start(sampling, steps - 1);
  const first = last.indexOf(largest(last));
  engine.prefill([first], { then: "sample" });
  engine.decode(steps - 2);
  const rest = await engine.readOutputs(0, steps - 1);
  return [first, ...rest.map(({ id }) => id)];
}

/** What a model is made of. */
interface Case {
  readonly config: ModelConfig;
  readonly load: (backend: Backend) => Promise<Weights>;
  readonly policy: Policy;
}

/** Runs `body` with an engine of its own. */
async function withEngine<T>(
  backend: Backend,
  { config, load, policy }: Case,
  body: (engine: Engine) => Promise<T>,
): Promise<T> {
  using weights = await load(backend);
  using engine = new Engine({ backend, config, weights, policy });
  return await body(engine);
}

/**
 * How far each row of logits may be from the golden one, as a share of the
 * row's largest absolute value.
 *
 * In f32 the sums of both sides are in another order: 1e-3 is what is asked
 * for. A backend with 16-bit floats may add what rounding weights, keys and
 * values does to the reference, which is computed here, twice: numbers next to
 * the middle of two 16-bit floats may be rounded to either.
 */
async function tolerances(
  backend: Backend,
  model: Case,
  { ids, errorsOf }: {
    ids: readonly number[];
    errorsOf: (rows: Float32Array[]) => readonly number[];
  },
): Promise<number[]> {
  if (backend.halfBytes === 4) return ids.map(() => 1e-3);
  await using half = new HalfCpuBackend(backend.precision);
  const chunk = longestPiece(model.policy.schedule);
  const errors = await withEngine(
    half,
    model,
    async (engine) => errorsOf(await allLogits(engine, ids, chunk)),
  );
  return errors.map((error) => 1e-3 + 2 * error);
}

/** Largest difference of two rows over the largest size of the second. */
function rowError(
  row: ArrayLike<number>,
  expected: ArrayLike<number>,
): number {
  const errors = Array.from(expected, (x, i) => Math.abs(row[i]! - x));
  return largest(errors) / largestSize(expected);
}

function largest(row: ArrayLike<number>): number {
  return Array.from(row).reduce((a, b) => Math.max(a, b));
}

function largestSize(row: ArrayLike<number>): number {
  return largest(Array.from(row, Math.abs));
}

/** Compares greedy ids up to the first step that rounding may decide. */
function assertGreedy(
  actual: readonly number[],
  expected: readonly number[],
  { gaps, margin }: { gaps: readonly number[]; margin: number },
): void {
  const unsure = gaps.findIndex((gap) => gap < margin);
  const certain = unsure < 0 ? expected.length : unsure;
  assertEquals(actual.slice(0, certain), expected.slice(0, certain));
}

const golden = new URL("../golden/", import.meta.url);
const docs7m = new URL("../../examples/models/docs-7m/", import.meta.url);

interface DocsGolden {
  readonly model_sha256: string;
  readonly items: readonly {
    readonly prompt: string;
    readonly ids: readonly number[];
    readonly top8_ids: readonly number[];
    readonly top8_logits: readonly number[];
    readonly logsumexp: number;
    readonly mean_loss: number;
    readonly greedy_ids: readonly number[];
    readonly greedy_text: string;
    readonly greedy_gaps: readonly number[];
  }[];
}

async function readJson<T>(url: URL): Promise<T> {
  return JSON.parse(await Deno.readTextFile(url));
}

const docs = await readJson<DocsGolden>(new URL("docs-7m.json", golden));

function logSumExp(row: Float32Array): number {
  const max = largest(row);
  return max + Math.log(row.reduce((sum, x) => sum + Math.exp(x - max), 0));
}

eachBackend(
  "docs-7m gives the ids, logits, loss and text of transformers",
  async (backend) => {
    using folder = await openModelFolder(docs7m);
    const model: Case = {
      config: folder.config,
      load: (backend) => loadWeights(backend, folder, { verify: false }),
      policy: fullCache({ budget: 1024 }),
    };
    await withEngine(backend, model, async (engine) => {
      for (const item of docs.items) {
        const { ids, top8_ids, top8_logits } = item;
        assertEquals(folder.tokenizer.encode(item.prompt), [...ids]);
        engine.reset();
        const errorsOf = (rows: Float32Array[]) => [
          rowError(top8_ids.map((id) => rows.at(-1)![id]!), top8_logits),
        ];
        const [tolerance] = await tolerances(backend, model, { ids, errorsOf });
        const rows = await allLogits(
          engine,
          ids,
          longestPiece(model.policy.schedule),
        );
        const [error] = errorsOf(rows);
        assert(error! <= tolerance!, `logits: ${error} > ${tolerance}`);
        const last = rows.at(-1)!;
        const margin = tolerance! * largestSize(top8_logits);
        assert(Math.abs(logSumExp(last) - item.logsumexp) <= margin);
        const losses = ids.slice(1).map((id, i) =>
          logSumExp(rows[i]!) - rows[i]![id]!
        );
        const loss = losses.reduce((a, b) => a + b, 0) / losses.length;
        assert(
          Math.abs(loss - item.mean_loss) <= margin,
          `loss ${loss}, expected ${item.mean_loss}`,
        );
        const greedy = await greedyIds(engine, last, item.greedy_ids.length);
        // Two logits may each be off by the margin.
        const gaps = item.greedy_gaps;
        assertGreedy(greedy, item.greedy_ids, { gaps, margin: 2 * margin });
      }
    });
  },
  { large: true },
);

Deno.test("the golden outputs belong to the model that is shipped", async () => {
  const bytes = await Deno.readFile(new URL("model.safetensors", docs7m));
  const digest = await crypto.subtle.digest("SHA-256", bytes);
  assertEquals(new Uint8Array(digest).toHex(), docs.model_sha256);
});

interface FamilyGolden {
  readonly ids: readonly number[];
  readonly logits: readonly (readonly number[])[];
  readonly greedy_ids: readonly number[];
  readonly greedy_gaps: readonly number[];
}

/** Every folder under tests/golden/families. */
const families = [...Deno.readDirSync(new URL("families/", golden))]
  .map(({ name }) => name).sort();

for (const family of families) {
  eachBackend(
    `${family} gives the logits and ids of transformers`,
    async (backend) => {
      const folder = new URL(`families/${family}/`, golden);
      const item = await readJson<FamilyGolden>(new URL("golden.json", folder));
      const file = new URL("config.json", folder);
      const text = await Deno.readTextFile(file);
      const config = parseModelConfig(text, file.pathname);
      using checkpoint = await openCheckpoint(fromFileUrl(folder));
      // Dynamic scaling depends on the length of the whole prompt, so the prompt
      // goes in one piece, as it did there; otherwise chunks must not matter.
      const chunk = config.rope.type === "dynamic" ? 32 : 10;
      const model: Case = {
        config,
        load: (backend) => loadWeights(backend, { checkpoint, config }),
        policy: {
          ...fullCache({ budget: 64 }),
          schedule: { kind: "streaming", chunk },
        },
      };
      const { ids } = item;
      const errorsOf = (rows: Float32Array[]) =>
        rows.map((row, r) => rowError(row, item.logits[r]!));
      const tolerance = await tolerances(backend, model, { ids, errorsOf });
      await withEngine(backend, model, async (engine) => {
        const rows = await allLogits(engine, ids, chunk);
        errorsOf(rows).forEach((error, r) =>
          assert(error <= tolerance[r]!, `row ${r}: ${error} > ${tolerance[r]}`)
        );
        const margin = largest(tolerance) * largestSize(item.logits.at(-1)!);
        const { greedy_ids, greedy_gaps: gaps } = item;
        const greedy = await greedyIds(engine, rows.at(-1)!, greedy_ids.length);
        assertGreedy(greedy, greedy_ids, { gaps, margin: 2 * margin });
      });
    },
    { bfloat16: true },
  );
}
