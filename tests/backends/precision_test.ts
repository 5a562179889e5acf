/**
 * Keys and values of bfloat16: who stores them, and what the others say. The
 * kernels are tested by their cases.
 */
import {
  assertEquals,
  assertNotEquals,
  assertRejects,
  assertStringIncludes,
  assertThrows,
} from "@std/assert";
import type { Backend } from "../../src/backends/backend.ts";
import {
  backendLabel,
  checkPrecision,
} from "../../src/backends/check_precision.ts";
import { CpuBackend } from "../../src/backends/cpu/cpu_backend.ts";
import { buildCuda } from "../../src/backends/cuda/build.ts";
import { cachePath } from "../../src/backends/cuda/find_library.ts";
import { openBackend } from "../../src/backends/open_backend.ts";
import { Engine } from "../../src/generate/engine.ts";
import { Generator } from "../../src/generate/generator.ts";
import { scoreTokens } from "../../src/generate/score_tokens.ts";
import { randomWeights } from "../../src/model/random_weights.ts";
import { keepKV } from "../../src/policies/keep_kv.ts";
import type { Policy, Precision } from "../../src/policies/parts.ts";
import {
  emulationMissing,
  openEmulation,
} from "../cuda_emulation/build_emulation.ts";
import { tinyConfig } from "../generate/tiny_model.ts";
import { roundToBfloat16 } from "../kernels/random.ts";

const bfloat16: Policy = {
  ...keepKV({ budget: 32 }),
  precision: { kind: "bfloat16" },
};

const missing = await emulationMissing();

/** A test on an emulated device whose caches hold bfloat16. */
function bfloat16Test(
  name: string,
  body: (backend: Backend) => Promise<void>,
): void {
  Deno.test({
    name: `${name}${missing === undefined ? "" : ` (ignored: ${missing})`}`,
    ignore: missing !== undefined,
    async fn() {
      await using backend = await openEmulation({ precision: "bfloat16" });
      await body(backend);
    },
  });
}

Deno.test("openBackend() names what cannot store bfloat16", async () => {
  for (const name of ["webgpu", "cpu"] as const) {
    await assertRejects(
      () => openBackend(name, { precision: "bfloat16" }),
      TypeError,
      `Cannot open backend "${name}" with precision "bfloat16": expected backend "cuda"`,
    );
  }
});

Deno.test("what is no precision is refused", async () => {
  const precision = "fp8" as Precision["kind"];
  await assertRejects(
    () => openBackend("cpu", { precision }),
    TypeError,
    'Cannot open a backend with precision "fp8": expected one of half, bfloat16',
  );
  await assertRejects(
    () => buildCuda({ nvcc: "nvcc", architectures: ["90a"], cache: precision }),
    TypeError,
    'Cannot build for caches of "fp8": expected one of half, bfloat16',
  );
});

Deno.test("a backend of another precision is refused by name", async () => {
  await using backend = new CpuBackend();
  const message =
    'Cannot use policy "keepkv": its precision is of kind "bfloat16", but the backend "cpu" stores keys and values as "half"';
  await assertRejects(
    () =>
      Generator.load(
        new URL("../../examples/models/docs-7m", import.meta.url),
        {
          backend,
          cache: bfloat16,
        },
      ),
    TypeError,
    message,
  );
  using weights = randomWeights(backend, tinyConfig, 2);
  assertThrows(
    () =>
      new Engine({ backend, config: tinyConfig, weights, policy: bfloat16 }),
    TypeError,
    message,
  );
});

Deno.test("a policy that asks for nothing takes what there is", () => {
  const cuda = { name: "cuda", precision: "bfloat16" } as const;
  checkPrecision(keepKV({ budget: 32 }), cuda);
  checkPrecision(bfloat16, cuda);
  assertEquals(backendLabel(cuda), "cuda bfloat16");
  assertEquals(backendLabel({ ...cuda, precision: "half" }), "cuda");
});

Deno.test("each type of caches has a library in the same folder", async () => {
  const [half, other] = [await cachePath(), await cachePath("bfloat16")];
  const folder = half.replace(/[^/]+$/, "");
  assertEquals(half, `${folder}libsteadykv_cuda.so`);
  assertEquals(other, `${folder}libsteadykv_cuda_bfloat16.so`);
});

bfloat16Test("converts bfloat16 both ways", async (backend) => {
  const largest = 255 / 128 * 2 ** 127;
  using buffer = backend.allocate("keys", "half", 8);
  const numbers = new Float32Array([
    ...[1, -2, 1e6, largest, 1 + 2 ** -8, 1 + 3 * 2 ** -8, 2 ** -130],
  ]);
  backend.write(buffer, numbers, 1);
  assertEquals([...(await backend.read(buffer)).f32], [
    ...[0, 1, -2, 999_424, largest, 1, 1 + 2 ** -6, 2 ** -130],
  ]);
  assertEquals(
    (await backend.read(buffer, 1)).f32,
    roundToBfloat16(numbers),
  );
  for (const value of [3.4e38, -Infinity, NaN]) {
    const written = Math.fround(value);
    assertThrows(
      () => backend.write(buffer, new Float32Array([1e6, written])),
      RangeError,
      `Cannot write ${written} to keys: expected a number that a bfloat16 can hold, at most 3.39e38`,
    );
  }
});

bfloat16Test("weights stay halves beside bfloat16 caches", async (backend) => {
  using matrix = backend.allocateMatrix("m", { rows: 1, columns: 2 });
  backend.writeRows(matrix, new Float32Array([65504, 1]), { firstRow: 0 });
  assertThrows(
    () =>
      backend.writeRows(matrix, new Float32Array([1, 65520]), { firstRow: 0 }),
    RangeError,
    "Cannot write 65520 to m: expected a number that a 16-bit float can hold, at most 65504",
  );
  // What was enqueued is waited for.
  using buffer = backend.allocate("keys", "half", 8);
  await backend.read(buffer);
});

bfloat16Test("a model runs with bfloat16 caches", async (backend) => {
  assertEquals(backend.precision, "bfloat16");
  assertStringIncludes(backend.description, "bfloat16 caches");
  const ids = Array.from({ length: 120 }, (_, i) => (i * i + 3 * i) % 64);
  const score = async (backend: Backend, policy: Policy) => {
    using weights = randomWeights(backend, tinyConfig, 2);
    using engine = new Engine({
      ...{ backend, config: tinyConfig, weights, policy },
    });
    const text = { prompt: ids.slice(0, 60), continuation: ids.slice(60) };
    const [scores] = await scoreTokens(engine, [text], { stepsPerRead: 8 });
    assertEquals((await engine.cache.stats()).liveSlots, 32);
    return scores!;
  };
  const scores = await score(backend, bfloat16);
  assertEquals(await score(backend, keepKV({ budget: 32 })), scores);
  // Other numbers are stored than those of halves.
  await using halves = await openEmulation();
  assertNotEquals(await score(halves, keepKV({ budget: 32 })), scores);
});
