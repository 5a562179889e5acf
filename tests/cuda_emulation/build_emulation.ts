/**
 * Builds the CUDA library for an emulated device, with `g++` alone, and opens
 * it. See README.md.
 *
 * @module
 */
import type { Backend } from "../../src/backends/backend.ts";
import { cacheDefinitions } from "../../src/backends/cuda/build.ts";
import { CudaBackend } from "../../src/backends/cuda/cuda_backend.ts";
import { cacheFolder } from "../../src/backends/cuda/find_library.ts";
import { CudaLibrary } from "../../src/backends/cuda/library.ts";
import type { Precision } from "../../src/policies/parts.ts";

/** Sources of the library, and what is laid over them or stands beside. */
const SOURCES = new URL("../../cuda/", import.meta.url);
const EMULATION = new URL("./", import.meta.url);

const COMMON = [
  ...["-std=c++17", "-O2", "-g1", "-fPIC", "-fvisibility=hidden"],
  ...["-Iinclude", "-include", "cuda_runtime.h", "-fno-strict-aliasing"],
];

/**
 * Calls before every load and store, and where an address is not aligned; the
 * emulation has the functions.
 */
const INSTRUMENTED = [
  ...["-x", "c++", "-fsanitize=thread,alignment"],
  ...["--param", "tsan-instrument-func-entry-exit=0"],
  ...["--param", "tsan-distinguish-volatile=1"],
];

const LINKED = ["-shared", "-Wl,-T,shared_memory.ld", "-Wl,-z,defs"];

/** Why the emulation cannot be built here; undefined where it can. */
export async function emulationMissing(): Promise<string | undefined> {
  if (Deno.build.os !== "linux") return "the emulation is built on Linux only";
  const found = await new Deno.Command("g++", {
    args: ["--version"],
    stdout: "null",
    stderr: "null",
  }).output().catch(() => undefined);
  return found?.success ? undefined : "there is no g++";
}

/**
 * Opens a backend on an emulated device: 0 is like a Hopper, 1 is older and has
 * as little shared memory as any. There is a third that cannot be opened.
 */
export async function openEmulation(
  {
    device = 0,
    checkEveryKernel = false,
    ownProducts = true,
    precision = "half",
  }: {
    device?: 0 | 1;
    checkEveryKernel?: boolean;
    ownProducts?: boolean;
    precision?: Precision["kind"];
  } = {},
): Promise<Backend> {
  const path = await buildEmulation(precision);
  // The emulation has its own cuBLASLt: see emulator/matrix_library.cu.
  if (!ownProducts) Deno.env.set("STEADYKV_CUBLASLT", path);
  const library = new CudaLibrary(
    { path, named: "the emulation" },
    precision,
  );
  return CudaBackend.open(library, {
    device,
    checkEveryKernel,
    ownProducts,
  });
}

/**
 * Builds the library, unless one of these sources is in the cache folder.
 *
 * @param precision What caches hold (default halves).
 * @returns The path of the library.
 */
export async function buildEmulation(
  precision: Precision["kind"] = "half",
): Promise<string> {
  const files = await collectFiles();
  const common = [...COMMON, ...cacheDefinitions(precision)];
  const folder = `${cacheFolder()}/steadykv/cuda-emulation-${await hash(
    files,
    common,
  )}`;
  const path = `${folder}/libsteadykv_emulated.so`;
  await Deno.mkdir(folder, { recursive: true });
  // Tests that start together build it once.
  using lock = await Deno.open(`${folder}/lock`, { create: true, write: true });
  await lock.lock(true);
  if (!await exists(path)) {
    await compile(files, { common, folder, path });
  }
  return path;
}

/** Texts by their path in the folder where they are compiled. */
async function collectFiles(): Promise<Map<string, string>> {
  const files = new Map<string, string>();
  const add = async (base: URL, folder = "") => {
    for await (const entry of Deno.readDir(new URL(folder, base))) {
      const path = `${folder}${entry.name}`;
      if (entry.isDirectory) await add(base, `${path}/`);
      else if (/\.(cu|cuh|h|cc|ld)$/.test(path)) {
        files.set(path, await Deno.readTextFile(new URL(path, base)));
      }
    }
  };
  await add(SOURCES);
  for (const part of ["include", "emulator"]) await add(EMULATION, `${part}/`);
  await add(new URL("overlay/", EMULATION));
  const script = "shared_memory.ld";
  files.set(script, await Deno.readTextFile(new URL(script, EMULATION)));
  return files;
}

async function hash(
  files: ReadonlyMap<string, string>,
  common: readonly string[],
): Promise<string> {
  const all = [...files].sort(([a], [b]) => a < b ? -1 : 1);
  const text = JSON.stringify([common, INSTRUMENTED, LINKED, all]);
  const digest = await crypto.subtle.digest(
    "SHA-256",
    new TextEncoder().encode(text),
  );
  return new Uint8Array(digest).subarray(0, 8).toHex();
}

async function compile(
  files: ReadonlyMap<string, string>,
  { common, folder, path }: {
    common: readonly string[];
    folder: string;
    path: string;
  },
): Promise<void> {
  const sources = await Deno.makeTempDir({ prefix: "steadykv-emulation-" });
  try {
    for (const [file, text] of files) {
      const parent = file.slice(0, Math.max(0, file.lastIndexOf("/")));
      await Deno.mkdir(`${sources}/${parent}`, { recursive: true });
      await Deno.writeTextFile(`${sources}/${file}`, text);
    }
    const units = [...files.keys()].filter((file) => /\.(cu|cc)$/.test(file));
    const queue = units.values();
    const worker = async () => {
      for (const unit of queue) {
        const options = unit.endsWith(".cu") ? INSTRUMENTED : [];
        await run(
          [...common, ...options, "-c", unit, "-o", `${unit}.o`],
          sources,
        );
      }
    };
    await Promise.all(Array.from(
      { length: Math.min(4, navigator.hardwareConcurrency) },
      worker,
    ));
    const built = `${folder}/unfinished.so`;
    const objects = units.map((unit) => `${unit}.o`);
    await run(["-o", built, ...objects, ...LINKED], sources);
    await Deno.rename(built, path);
  } finally {
    await Deno.remove(sources, { recursive: true });
  }
}

async function run(args: string[], cwd: string): Promise<void> {
  const { success, stderr } = await new Deno.Command("g++", { args, cwd })
    .output();
  if (success) return;
  throw new Error(
    `Cannot build the CUDA emulation: g++ failed:\n${
      new TextDecoder().decode(stderr)
    }`,
  );
}

async function exists(path: string): Promise<boolean> {
  return await Deno.stat(path).then(() => true, () => false);
}

if (import.meta.main) console.log(await buildEmulation());
