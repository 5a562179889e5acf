/**
 * The CUDA backend where there is no GPU: what it says is missing, and whether
 * the two descriptions of the library's interface agree. With `nvcc` the library
 * is built and opened; with a GPU it runs.
 */
import {
  assert,
  assertEquals,
  assertInstanceOf,
  assertMatch,
  assertRejects,
  assertStringIncludes,
  assertThrows,
} from "@std/assert";
import type { Backend } from "../../src/backends/backend.ts";
import { buildCuda } from "../../src/backends/cuda/build.ts";
import {
  findLibrary,
  LIBRARY_VARIABLE,
} from "../../src/backends/cuda/find_library.ts";
import { CudaLibrary, errorOf } from "../../src/backends/cuda/library.ts";
import { openCuda } from "../../src/backends/cuda/open_cuda.ts";
import {
  layouts,
  packStruct,
  placeFields,
} from "../../src/backends/cuda/structs.ts";
import {
  ABI_VERSION,
  Status,
  symbols,
} from "../../src/backends/cuda/symbols.ts";
import {
  BackendUnavailableError,
  DeviceLostError,
  KernelError,
} from "../../src/errors.ts";
import { stdFlags } from "../offline_std/std_flags.ts";
import { type Candidate, candidates, eachBackend } from "./each_backend.ts";

const root = new URL("../../", import.meta.url);
const header = Deno.readTextFileSync(new URL("cuda/steadykv.h", root))
  .replaceAll(/\/\*[^]*?\*\//g, "");

async function hasCommand(command: string): Promise<boolean> {
  const output = await new Deno.Command(command, {
    args: ["--version"],
    stdout: "null",
    stderr: "null",
  }).output().catch(() => undefined);
  return output?.success ?? false;
}

const hasCudaCompiler = await hasCommand("nvcc");

function camelCase(name: string): string {
  return name.replaceAll(/_([a-z])/g, (_, letter) => letter.toUpperCase());
}

/** Fields of a struct of the header with their offsets, by the rules of C. */
function cFields(
  name: string,
): { fields: [path: string, offset: number][]; size: number } {
  const body = header.match(
    new RegExp(`typedef struct skv_${name} \\{([^}]*)\\} skv_${name};`),
  )?.[1];
  assert(body !== undefined, `struct skv_${name} is not in the header`);
  const fields: [string, number][] = [];
  let offset = 0;
  for (const line of body.split(";").map((line) => line.trim())) {
    if (line === "") continue;
    const [, type, pointer, field] = line.match(
      /^(?:const )?(\w+) (\*?)(\w+)$/,
    )!;
    const inner = pointer === "" && type!.startsWith("skv_")
      ? cFields(type!.slice(4))
      : undefined;
    const bytes = pointer !== "" || type === "uint64_t" ? 8 : 4;
    const alignment = inner === undefined ? bytes : 8;
    offset = Math.ceil(offset / alignment) * alignment;
    if (inner !== undefined) {
      for (const [path, at] of inner.fields) {
        fields.push([`${camelCase(field!)}.${path}`, offset + at]);
      }
    } else if (field !== "reserved") fields.push([camelCase(field!), offset]);
    offset += inner?.size ?? bytes;
  }
  return { fields, size: Math.ceil(offset / 8) * 8 };
}

for (const [name, layout] of Object.entries(layouts)) {
  Deno.test(`skv_${name} is the same in C and here`, () => {
    const { fields, size } = placeFields(layout);
    assertEquals(
      fields.map(({ path, offset }) => [path.join("."), offset]),
      cFields(name).fields,
    );
    assertEquals(size, cFields(name).size);
  });
}

Deno.test("packStruct() puts numbers where C reads them", () => {
  const bytes = packStruct(layouts.rows, {
    offset: 2 ** 40 + 1,
    rows: 3,
    columns: 2 ** 32 - 1,
    pitch: 7,
  });
  assertEquals(
    [...new BigUint64Array(bytes.buffer)],
    [2n ** 40n + 1n, (2n ** 32n - 1n) * 2n ** 32n + 3n, 7n],
  );
});

Deno.test("the functions are those of the header", () => {
  const declared = [...header.matchAll(/SKV_API\s+\w+\s+(skv_\w+)\(([^)]*)\)/g)]
    .map(([, name, parameters]) => [
      name!,
      parameters === "void" ? 0 : parameters!.split(",").length,
    ]);
  assertEquals(
    Object.entries(symbols).map(([name, { parameters }]) => [
      name,
      parameters.length,
    ]).sort(),
    declared.sort(),
  );
  assertStringIncludes(header, `#define SKV_ABI_VERSION ${ABI_VERSION}\n`);
});

Deno.test("the library is an option, a variable or in the cache", async () => {
  assertEquals(await findLibrary("a.so"), {
    path: "a.so",
    named: "the option",
  });
  const before = Deno.env.get(LIBRARY_VARIABLE);
  try {
    Deno.env.set(LIBRARY_VARIABLE, "b.so");
    assertEquals(await findLibrary(), {
      path: "b.so",
      named: LIBRARY_VARIABLE,
    });
    Deno.env.delete(LIBRARY_VARIABLE);
    const { path, named } = await findLibrary();
    assertEquals(named, undefined);
    assert(/\/steadykv\/cuda-[0-9a-f]{16}\/libsteadykv_cuda\.so$/.test(path));
  } finally {
    if (before !== undefined) Deno.env.set(LIBRARY_VARIABLE, before);
  }
});

Deno.test("every status is an exception of its kind", () => {
  const error = (status: number, text = "it is so") =>
    errorOf(status, text, "do this");
  assertInstanceOf(error(Status.outOfMemory), RangeError);
  assertEquals(
    error(Status.outOfMemory).message,
    "Cannot do this: it is so",
  );
  assertInstanceOf(error(Status.tooLarge), RangeError);
  assertInstanceOf(error(Status.invalid), TypeError);
  for (const status of [Status.noDevice, Status.architecture]) {
    assertInstanceOf(error(status), BackendUnavailableError);
    assertStringIncludes(error(status).message, "it is so: ");
  }
  assertInstanceOf(error(Status.deviceLost), DeviceLostError);
  const named = error(Status.kernel, "cannot run kernel embed: it burns");
  assertInstanceOf(named, KernelError);
  assertEquals(named.kernel, "embed");
  assertEquals(named.message, "Cannot run kernel embed: it burns");
  assertStringIncludes(
    error(Status.kernel).message,
    "Cannot run kernel of an earlier program: it is so",
  );
});

Deno.test("openCuda() needs a permission and does not ask for it", async () => {
  const module = new URL("src/backends/cuda/open_cuda.ts", root).href;
  const { stdout } = await new Deno.Command(Deno.execPath(), {
    args: ["eval", "--no-check", ...await stdFlags(), "--ext=ts"].concat(
      `const { openCuda } = await import(${JSON.stringify(module)});
       Deno.permissions.revokeSync({ name: "ffi" });
       await openCuda().catch((error) => console.log(error.message));`,
    ),
  }).output();
  assertEquals(
    new TextDecoder().decode(stdout).trim(),
    "Cannot open the cuda backend: no permission to open native libraries: run with --allow-ffi",
  );
});

Deno.test("buildCuda() names the architectures that it takes", async () => {
  await assertRejects(
    () => buildCuda({ nvcc: "nvcc", architectures: ["75"] }),
    RangeError,
    'Cannot build for architecture "75": expected a compute capability of at least 80, e.g. 90a',
  );
});

Deno.test({
  name: `the library builds, opens, and says in a sentence what is missing${
    hasCudaCompiler ? "" : " (ignored: there is no nvcc)"
  }`,
  ignore: !hasCudaCompiler,
  async fn(t) {
    const noGpu = candidates.find(({ name }) => name === "cuda")!.unavailable;
    // One that a GPU of this machine cannot run.
    const present = noGpu === undefined ? await capability() : "";
    const [built, named] = present.startsWith("9")
      ? ["80", "8.0"] as const
      : ["90a", "9.0"] as const;
    const folder = await Deno.makeTempDir();
    try {
      const path = `${folder}/library.so`;
      await buildCuda({ architectures: [built], out: path });
      const library = new CudaLibrary({ path });
      const refusal = (device: number) => {
        const context = new BigUint64Array(1);
        const status = library.symbols.skv_open(device, 0, context);
        return errorOf(status, library.lastError(null), "open").message;
      };
      assertMatch(
        refusal(99),
        /^Cannot open the cuda backend: (there is no NVIDIA driver|the NVIDIA driver supports CUDA .*|there is no GPU 99: the driver finds \d+|cannot find a GPU: .*): check that nvidia-smi lists a GPU or use another backend$/,
      );
      await t.step({
        name: `it names another architecture than its own${
          noGpu === undefined ? "" : ` (ignored: ${noGpu})`
        }`,
        ignore: noGpu !== undefined,
        fn: () =>
          assertMatch(
            refusal(0),
            new RegExp(
              `^Cannot open the cuda backend: the library was built for compute capability ${named}, but .+ has ${present}: build it with `,
            ),
          ),
      });
      library.close();
    } finally {
      await Deno.remove(folder, { recursive: true });
    }
  },
});

/** Compute capability of this machine's GPU, e.g. `9.0`. */
async function capability(): Promise<string> {
  await using backend = await openCuda();
  return backend.description.match(/compute capability ([\d.]+)/)![1]!;
}

function cudaTest(
  name: string,
  body: (backend: Backend, candidate: Candidate) => Promise<void>,
): void {
  eachBackend(name, body, { only: ["cuda"] });
}

/** A program that adds 1 to a buffer `(1, width)`. */
function counter(backend: Backend, width = 8) {
  const hidden = backend.allocate("hidden", "f32", width);
  const input = backend.allocate("input", "f32", 4);
  const weight = backend.allocateMatrix("weight", { rows: width, columns: 4 });
  backend.write(input, new Float32Array([1, 0, 0, 0]));
  for (let firstRow = 0; firstRow < width; firstRow++) {
    backend.writeRows(weight, new Float32Array([1, 0, 0, 0]), { firstRow });
  }
  const step = {
    kind: "decode",
    rows: 1,
    tokens: backend.allocate("tokens", "u32", 1),
    chunk: backend.allocate("chunk", "u32", 4),
    state: backend.allocate("state", "u32", 8),
  } as const;
  const program = backend.record("count", (kernels) => {
    kernels.projectAdd({ hidden, input, weight, step });
  });
  return { hidden, program };
}

cudaTest("reads in flight come in order", async (backend) => {
  const { hidden, program } = counter(backend);
  const reads = Array.from({ length: 40 }, () => {
    program.run(3);
    return backend.read(hidden, 1, 2);
  });
  const results = await Promise.all(reads);
  assertEquals(
    results.map(({ f32 }) => [...f32]),
    reads.map((_, i) => [3 * (i + 1), 3 * (i + 1)]),
  );
});

cudaTest("large writes and reads arrive whole", async (backend) => {
  // More than the ring of pinned memory, and not a multiple of its pieces.
  const length = 5 * 2 ** 20 + 3;
  const data = Uint32Array.from({ length }, (_, i) => Math.imul(i, 0x9e3779b1));
  const buffer = backend.allocate("words", "u32", length);
  backend.write(buffer, data);
  const { u32 } = await backend.read(buffer);
  assert(u32.every((word, i) => word === data[i]));
  const columns = 2 ** 20 + 12;
  const matrix = backend.allocate("halves", "half", 4 * columns);
  const halves = Float32Array.from({ length: 4 * columns }, (_, i) => i % 2048);
  backend.write(matrix, halves);
  const { f32 } = await backend.read(matrix);
  assert(f32.every((x, i) => x === halves[i]));
});

cudaTest("writes rows apart", async (backend) => {
  const [rows, columns] = [24, 20];
  const data = Float32Array.from({ length: rows * columns }, (_, i) => i % 512);
  const matrix = backend.allocateMatrix("apart", { rows, columns });
  for (const parity of [0, 1]) {
    const half = new Float32Array(rows / 2 * columns);
    for (let row = 0; row < rows / 2; row++) {
      const from = (2 * row + parity) * columns;
      half.set(data.subarray(from, from + columns), row * columns);
    }
    backend.writeRows(matrix, half, { firstRow: parity, rowStep: 2 });
  }
  // Rows are looked up as embeddings.
  const hidden = backend.allocate("hidden", "f32", rows * columns);
  const tokens = backend.allocate("tokens", "u32", rows);
  backend.write(tokens, Uint32Array.from({ length: rows }, (_, i) => i));
  const step = {
    kind: "decode",
    rows,
    tokens,
    state: backend.allocate("state", "u32", rows * 8),
    chunk: backend.allocate("chunk", "u32", 4),
  } as const;
  const seen = backend.allocate("seen", "u32", rows);
  backend.record("look up", (kernels) =>
    kernels.embed({
      hidden,
      seen,
      embedding: matrix,
      step,
      sizes: {
        hidden: columns,
        heads: 1,
        kvHeads: 1,
        headDim: 4,
        ffn: 4,
        vocabulary: rows,
        normEpsilon: 1e-5,
      },
    })).run();
  assertEquals((await backend.read(hidden)).f32, data);
});

cudaTest("accounts for every byte", async (backend) => {
  assertEquals(backend.bytesAllocated, 0);
  const buffers = [
    backend.allocate("halves", "half", 7),
    backend.allocate("floats", "f32", 1000),
    backend.allocate("one", "u32", 1),
    backend.allocateMatrix("matrix", { rows: 5, columns: 12 }),
  ];
  const held = buffers.reduce((sum, { byteLength }) => sum + byteLength, 0);
  assertEquals(held, 16 + 4000 + 16 + 5 * 16 * 2);
  assertEquals(backend.bytesAllocated, held);
  const { program, hidden } = counter(backend);
  const before = backend.bytesAllocated;
  program.run(5);
  await backend.read(hidden);
  assertEquals(backend.bytesAllocated, before);
  program[Symbol.dispose]();
  for (const buffer of buffers) buffer[Symbol.dispose]();
  for (const buffer of buffers) buffer[Symbol.dispose]();
  assertEquals(backend.bytesAllocated, before - held);
});

cudaTest("converts halves both ways", async (backend) => {
  const buffer = backend.allocate("halves", "half", 9);
  backend.write(buffer, new Float32Array([1, -2, 0.5, 65504]), 2);
  backend.write(buffer, new Float32Array([7]), 8);
  assertEquals([...(await backend.read(buffer)).f32], [
    ...[0, 0, 1, -2, 0.5, 65504, 0, 0, 7],
  ]);
  assertEquals([...(await backend.read(buffer, 3, 3)).f32], [-2, 0.5, 65504]);
  assertEquals((await backend.read(buffer, 9, 0)).f32.length, 0);
});

cudaTest("refuses what halves or buffers cannot hold", async (backend) => {
  const buffer = backend.allocate("keys", "half", 8);
  for (const value of [70_000, -1e9, NaN, Infinity]) {
    assertThrows(
      () => backend.write(buffer, new Float32Array([0, value])),
      RangeError,
      `Cannot write ${value} to keys`,
    );
  }
  assertThrows(() => backend.write(buffer, new Float32Array(9)), RangeError);
  assertThrows(() => backend.write(buffer, new Uint32Array(2)), TypeError);
  await assertRejects(() => backend.read(buffer, 7, 2), RangeError);
  const matrix = backend.allocateMatrix("m", { rows: 3, columns: 8 });
  assertThrows(
    () =>
      backend.writeRows(matrix, new Float32Array(16), {
        firstRow: 0,
        rowStep: 3,
      }),
    RangeError,
    "of m",
  );
});

cudaTest("says that it was disposed", async (backend) => {
  const { hidden, program } = counter(backend);
  const pending = backend.read(hidden);
  await backend[Symbol.asyncDispose]();
  await backend[Symbol.asyncDispose]();
  await pending;
  await assertRejects(() => backend.read(hidden), TypeError, "was disposed");
  assertThrows(() => program.run(), TypeError, "was disposed");
  program[Symbol.dispose]();
  hidden[Symbol.dispose]();
});

cudaTest("keeps two backends apart", async (backend, candidate) => {
  await using other = await candidate.open();
  const mine = counter(backend);
  const theirs = counter(other);
  mine.program.run(2);
  theirs.program.run(5);
  assertEquals((await backend.read(mine.hidden)).f32[0], 2);
  assertEquals((await other.read(theirs.hidden)).f32[0], 5);
});
