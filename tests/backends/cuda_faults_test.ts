/**
 * What happens to the CUDA backend when something goes wrong: what is said, and
 * what can still be done. Faults that a process might not survive happen in one
 * of their own: `cuda_fault_probe.ts`.
 */
import {
  assertEquals,
  assertMatch,
  assertRejects,
  assertStringIncludes,
  assertThrows,
} from "@std/assert";
import { fromFileUrl } from "@std/path";
import type { Backend } from "../../src/backends/backend.ts";
import { CpuBackend } from "../../src/backends/cpu/cpu_backend.ts";
import { LIBRARY_VARIABLE } from "../../src/backends/cuda/find_library.ts";
import { openCuda } from "../../src/backends/cuda/open_cuda.ts";
import { ABI_VERSION } from "../../src/backends/cuda/symbols.ts";
import {
  buildEmulation,
  emulationMissing,
  openEmulation,
} from "../cuda_emulation/build_emulation.ts";
import { decodeCases } from "../kernels/decode_cases.ts";
import { tryCase } from "../kernels/kernel_case.ts";
import { modelSizes } from "../kernels/matrix_cases.ts";
import { play, type Scene } from "../kernels/scene.ts";
import { stdFlags } from "../offline_std/std_flags.ts";
import { compileLibrary } from "./c_library.ts";
import { type Candidate, eachBackend, emulated } from "./each_backend.ts";

/** Milliseconds after which a process that has not ended hangs. */
const TIME_LIMIT = 60_000;

/** Runs the probe; the lines that it printed before it ended well. */
async function probe(
  args: readonly string[],
  env: Record<string, string> = {},
): Promise<string[]> {
  const { stdout, stderr, code } = await new Deno.Command(Deno.execPath(), {
    args: [
      ...["run", "-A", "--no-check", ...await stdFlags()],
      fromFileUrl(new URL("cuda_fault_probe.ts", import.meta.url)),
      ...args,
    ],
    env,
    signal: AbortSignal.timeout(TIME_LIMIT),
  }).output();
  assertEquals(code, 0, new TextDecoder().decode(stderr));
  const lines = new TextDecoder().decode(stdout).trim().split("\n");
  assertEquals(lines.pop(), "still here");
  return lines;
}

/** Something that keeps the backend from being opened. */
interface Obstacle {
  readonly name: string;
  /** Where the driver is looked for first. */
  readonly driver: "none" | "no GPU" | "one GPU";
  /** Environment variables; may put files into `folder`. */
  prepare?(folder: string): Promise<Record<string, string>>;
  readonly args?: readonly string[];
  /** What is said between "the cuda backend: " and the end. */
  says(folder: string): RegExp;
}

/** A driver that says how many devices there are. */
const drivers = {
  "no GPU": "int cuInit(unsigned flags) { return 100; }" +
    "int cuDeviceGetCount(int *count) { return 100; }",
  "one GPU": "int cuInit(unsigned flags) { return 0; }" +
    "int cuDeviceGetCount(int *count) { return !(*count = 1); }",
};

const BUILD = "build it with `deno task build:cuda`";

/** A library whose source is given, named by the environment variable. */
function named(source: string): NonNullable<Obstacle["prepare"]> {
  return async (folder) => {
    await compileLibrary(`${folder}/named.so`, source);
    return { [LIBRARY_VARIABLE]: `${folder}/named.so` };
  };
}

const obstacles: readonly Obstacle[] = [
  {
    name: "no driver",
    driver: "none",
    says: () =>
      /^there is no NVIDIA driver \(libcuda\.so\.1 cannot be opened\): install the driver of an NVIDIA GPU or use another backend$/,
  },
  {
    name: "no GPU",
    driver: "no GPU",
    says: () =>
      /^the NVIDIA driver finds no GPU: check that nvidia-smi lists a GPU or use another backend$/,
  },
  {
    name: "no library",
    driver: "one GPU",
    prepare: (folder) =>
      Promise.resolve({ XDG_CACHE_HOME: folder, [LIBRARY_VARIABLE]: "" }),
    says: (folder) =>
      new RegExp(
        `^there is no usable CUDA library of this version in the cache: ${folder}/steadykv/cuda-[0-9a-f]{16}/libsteadykv_cuda\\.so: .*No such file.*: ${BUILD}$`,
      ),
  },
  {
    name: "no library where one is named",
    driver: "one GPU",
    prepare: (folder) =>
      Promise.resolve({ [LIBRARY_VARIABLE]: `${folder}/no.so` }),
    says: (folder) =>
      new RegExp(
        `^the library that ${LIBRARY_VARIABLE} names cannot be opened: ${folder}/no\\.so: .*No such file.*: ${BUILD}$`,
      ),
  },
  {
    name: "a library of another version",
    driver: "one GPU",
    prepare: named("unsigned skv_abi_version(void) { return 999; }"),
    says: (folder) =>
      new RegExp(
        `^the library ${folder}/named\\.so has interface version 999, but this package needs ${ABI_VERSION}: ${BUILD}$`,
      ),
  },
  {
    name: "a library without all functions",
    driver: "one GPU",
    prepare: named(
      `unsigned skv_abi_version(void) { return ${ABI_VERSION}; }`,
    ),
    says: (folder) =>
      new RegExp(
        `^the library that ${LIBRARY_VARIABLE} names cannot be opened: .*${folder}/named\\.so: undefined symbol: skv_.*: ${BUILD}$`,
      ),
  },
  {
    name: "a library for other caches",
    driver: "one GPU",
    prepare: async () => ({
      [LIBRARY_VARIABLE]: await buildEmulation("bfloat16"),
    }),
    says: () =>
      new RegExp(
        `^the library .+ was built for caches of bfloat16, expected half: ${BUILD}$`,
      ),
  },
  {
    name: "a library for another architecture",
    driver: "one GPU",
    prepare: async () => ({ [LIBRARY_VARIABLE]: await buildEmulation() }),
    args: ["--device=2"],
    says: () =>
      new RegExp(
        `^the library was built for compute capability 9\\.0, but emulated device has 7\\.5: ${BUILD}$`,
      ),
  },
];

const missing = await emulationMissing();

for (const { name, driver, prepare, args = [], says } of obstacles) {
  Deno.test({
    name: `where there is ${name}, one sentence says so${
      missing ? ` (ignored: ${missing})` : ""
    }`,
    ignore: missing !== undefined,
    async fn() {
      const folder = await Deno.makeTempDir();
      try {
        const library = `${folder}/libcuda.so.1`;
        // What is no library ends the search for one.
        if (driver === "none") await Deno.writeTextFile(library, "");
        else await compileLibrary(library, drivers[driver]);
        const path = Deno.env.get("LD_LIBRARY_PATH");
        const [line, ...more] = await probe(["open", ...args], {
          LD_LIBRARY_PATH: path ? `${folder}:${path}` : folder,
          ...await prepare?.(folder),
        });
        assertEquals(more, []);
        const start = "BackendUnavailableError: Cannot open the cuda backend: ";
        assertStringIncludes(line!, start);
        assertMatch(line!.slice(start.length), says(folder));
      } finally {
        await Deno.remove(folder, { recursive: true });
      }
    },
  });
}

function cudaTest(
  name: string,
  body: (backend: Backend, candidate: Candidate) => Promise<void>,
): void {
  eachBackend(name, body, { only: ["cuda"] });
}

/** The arguments that open what a candidate opens. */
function argsOf({ label }: Candidate): string[] {
  return label === emulated.label ? ["--emulated"] : [];
}

for (const check of [false, true]) {
  const kernel = (named: string) =>
    check ? `kernel ${named}` : "kernel of an earlier program";
  const named = check ? "; checking names the kernel" : "";

  cudaTest(
    `a fault is an exception, and the process goes on${named}`,
    async (_, candidate) => {
      const [fault, again, ...more] = await probe([
        ...["read", ...argsOf(candidate)],
        ...check ? ["--check"] : [],
      ]);
      assertStringIncludes(fault!, "an illegal memory access");
      assertStringIncludes(fault!, kernel("project_add"));
      assertEquals([again, ...more], [fault]);
    },
  );

  cudaTest(
    `a fault ends a generation, and what holds memory is disposed${named}`,
    async (_, candidate) => {
      const [fault, again, ...more] = await probe([
        ...["generate", ...argsOf(candidate)],
        ...check ? ["--check"] : [],
      ]);
      assertStringIncludes(fault!, "an illegal memory access");
      assertStringIncludes(fault!, kernel("qkv_rope_append"));
      assertEquals([again, ...more], [fault]);
    },
  );
}

cudaTest(
  "a cache that is too large leaves the device as it was",
  async (_, candidate) => {
    const [refusal, ...more] = await probe(["memory", ...argsOf(candidate)]);
    assertMatch(
      refusal!,
      /^RangeError: Cannot allocate cache layer \d keys of \d{11,} bytes: the device has \d+ of its \d+ bytes free$/,
    );
    assertEquals(more, ["0 bytes left behind", "2 tokens"]);
  },
);

cudaTest("says how much memory there is", async (backend) => {
  const before = backend.bytesAllocated;
  const { message } = assertThrows(
    () => backend.allocate("layer 3 keys", "half", 2 ** 50),
    RangeError,
  );
  assertMatch(
    message,
    /^Cannot allocate layer 3 keys of 2251799813685248 bytes: the device has \d+ of its \d+ bytes free$/,
  );
  // A program whose kernels leave more than there is room for.
  const [attends] = decodeCases;
  const { scene } = attends!.draw(1);
  const refusal = await assertRejects(
    () => play(backend, withHugeCache(scene)),
    RangeError,
  );
  assertMatch(
    refusal.message,
    /^Cannot record program scene, which works in \d{11,} bytes: the device has \d+ of its \d+ bytes free$/,
  );
  assertEquals(backend.bytesAllocated, before);
  // The failures leave nothing behind.
  await using reference = new CpuBackend();
  await tryCase(attends!, { backend, reference });
});

/** The scene many times over, with heads that have room for 2^31 slots. */
function withHugeCache(scene: Scene): Scene {
  return {
    ...scene,
    record(kernels, stage) {
      for (let i = 0; i < 64; i++) {
        scene.record({
          ...kernels,
          mergeAttend: (args) =>
            kernels.mergeAttend({
              ...args,
              cache: { ...args.cache, maxCapacity: 2 ** 31 },
            }),
        }, stage);
      }
    },
  };
}

/** The scene with a kernel behind it that cannot be launched: it has no rows. */
function withBadLaunch(scene: Scene): Scene {
  const sizes = modelSizes({});
  const { vocabulary: rows, hidden: columns } = sizes;
  const data = new Float32Array(rows * columns);
  return {
    ...scene,
    matrices: { ...scene.matrices, embedding: { rows, columns, data } },
    record(kernels, stage) {
      scene.record(kernels, stage);
      const words = stage.buffer("state");
      kernels.embed({
        hidden: stage.buffer("output"),
        seen: words,
        embedding: stage.matrix("embedding"),
        step: {
          kind: "decode",
          rows: 0,
          tokens: words,
          chunk: words,
          state: words,
        },
        sizes,
      });
    },
  };
}

for (const checkEveryKernel of [false, true]) {
  cudaTest(
    `a launch that fails leaves nothing to the next program${
      checkEveryKernel ? "; in checking mode neither" : ""
    }`,
    async (_, { label }) => {
      const open = label === emulated.label ? openEmulation : openCuda;
      await using backend = await open({ checkEveryKernel });
      await using reference = new CpuBackend();
      // Attention begins work beside the main stream, which nobody joins.
      const [attends] = decodeCases;
      const before = backend.bytesAllocated;
      await assertRejects(
        () => play(backend, withBadLaunch(attends!.draw(1).scene)),
        TypeError,
        "cannot run kernel embed: invalid",
      );
      assertEquals(backend.bytesAllocated, before);
      await tryCase(attends!, { backend, reference });
    },
  );
}
