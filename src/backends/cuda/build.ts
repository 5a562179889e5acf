/**
 * Builds the CUDA library with `nvcc` and puts it where the backend finds it.
 *
 * ```sh
 * deno task build:cuda                      # for the GPU of this machine
 * deno task build:cuda --arch 80,90a,100    # for those named
 * deno task build:cuda --cache bfloat16     # for caches of that type
 * ```
 *
 * Options: `--arch` compute capabilities as `nvcc` names them, without the dot;
 * `--cache` what caches hold, `half` (the default) or `bfloat16`, each of which
 * has a library of its own; `--nvcc` the compiler; `--out` the file to write
 * instead of the one in the cache folder. The sources are part of the package.
 *
 * @module
 */
import { parseArgs } from "@std/cli/parse-args";
import type { Precision } from "../../policies/parts.ts";
import { cachePath, readVariable } from "./find_library.ts";

/** What to build. */
export interface BuildOptions {
  /** Compute capabilities, e.g. `["90a"]`; that of the GPU unless given. */
  readonly architectures?: readonly string[];
  /** What caches hold (default `"half"`): see `Policy.precision`. */
  readonly cache?: Precision["kind"];
  /** The compiler; looked for unless given. */
  readonly nvcc?: string;
  /** Where to write the library; in the cache folder unless given. */
  readonly out?: string;
}

/** Oldest compute capability that the kernels run on. */
const OLDEST = 80;

/**
 * Builds the library.
 *
 * @returns The path of the library.
 * @throws {TypeError} If caches cannot hold what `cache` names.
 * @throws {RangeError} If an architecture is none that kernels run on.
 * @throws {Error} If there is no compiler, no GPU to build for, or the compiler
 * fails; the message says what to do.
 */
export async function buildCuda(options: BuildOptions = {}): Promise<string> {
  const { cache = "half" } = options;
  const definitions = cacheDefinitions(cache);
  const nvcc = options.nvcc ?? await findCompiler();
  const architectures = options.architectures ?? [await presentArchitecture()];
  const targets = architectures.map(target);
  const out = options.out ?? await cachePath(cache);
  const { cudaSources } = await import("../../../cuda/sources.generated.ts");
  const folder = await Deno.makeTempDir({ prefix: "steadykv-cuda-" });
  try {
    for (const [path, text] of Object.entries(cudaSources)) {
      const file = `${folder}/${path}`;
      await Deno.mkdir(parent(file), { recursive: true });
      await Deno.writeTextFile(file, text);
    }
    await Deno.mkdir(parent(out), { recursive: true });
    // Whoever opens the library meanwhile finds all of it or none.
    const unfinished = `${out}.${Deno.pid}`;
    const units = Object.keys(cudaSources).filter((path) =>
      path.endsWith(".cu")
    );
    await run(
      nvcc,
      [...FLAGS, ...definitions, ...targets, "-o", unfinished, ...units],
      folder,
    );
    await Deno.rename(unfinished, out);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
  return out;
}

/** Nothing is linked that a machine with a driver does not have. */
const FLAGS = [
  ...["-std=c++17", "-O3", "--threads=0", "-shared", "-cudart=static"],
  ...["-Xcompiler=-fPIC,-fvisibility=hidden,-static-libstdc++,-static-libgcc"],
  "-Xlinker=--exclude-libs=ALL",
];

/** Options of a compiler that build the sources for caches of a type. */
export function cacheDefinitions(cache: Precision["kind"]): readonly string[] {
  const found = Object.hasOwn(DEFINITIONS, cache)
    ? DEFINITIONS[cache]
    : undefined;
  if (found !== undefined) return found;
  throw new TypeError(
    `Cannot build for caches of "${cache}": expected one of ${
      Object.keys(DEFINITIONS).join(", ")
    }`,
  );
}

/** What the sources are told about what caches hold. */
const DEFINITIONS: Readonly<Record<Precision["kind"], readonly string[]>> = {
  half: [],
  bfloat16: ["-DSKV_CACHE_BFLOAT16"],
};

/** The option that builds for an architecture. */
function target(architecture: string): string {
  const [, number] = architecture.match(/^(?:sm_)?(\d{2,3})[af]?$/) ?? [];
  if (number === undefined || Number(number) < OLDEST) {
    throw new RangeError(
      `Cannot build for architecture "${architecture}": expected a compute capability of at least ${OLDEST}, e.g. 90a`,
    );
  }
  const name = architecture.replace("sm_", "");
  return `-gencode=arch=compute_${name},code=sm_${name}`;
}

/** Path of `nvcc`. */
async function findCompiler(): Promise<string> {
  const folders = [
    ...(readVariable("PATH") ?? "").split(":"),
    ...["CUDA_HOME", "CUDA_PATH"].flatMap((name) => {
      const home = readVariable(name);
      return home === undefined ? [] : [`${home}/bin`];
    }),
    "/usr/local/cuda/bin",
  ];
  for (const folder of folders) {
    const path = `${folder}/nvcc`;
    const found = await Deno.stat(path).catch(() => undefined);
    if (found?.isFile) return path;
  }
  throw new Error(
    "Cannot build the CUDA library: there is no nvcc on the PATH, under CUDA_HOME or in /usr/local/cuda: install the CUDA toolkit",
  );
}

/** The architecture of the first GPU of this machine. */
async function presentArchitecture(): Promise<string> {
  const output = await new Deno.Command("nvidia-smi", {
    args: ["--query-gpu=compute_cap", "--format=csv,noheader"],
    stdout: "piped",
    stderr: "null",
  }).output().catch(() => undefined);
  const [capability] = new TextDecoder().decode(output?.stdout).split("\n");
  const [, major, minor] = capability?.trim().match(/^(\d+)\.(\d)$/) ?? [];
  if (major === undefined || minor === undefined) {
    throw new Error(
      "Cannot find a GPU to build the CUDA library for: name architectures, e.g. --arch 90a",
    );
  }
  // From Hopper on, the fastest instructions are those of one architecture.
  return Number(major) >= 9 ? `${major}${minor}a` : `${major}${minor}`;
}

async function run(
  command: string,
  args: readonly string[],
  cwd: string,
): Promise<void> {
  const { success, stderr, stdout } = await new Deno.Command(command, {
    args: [...args],
    cwd,
  }).output();
  if (success) return;
  const decoder = new TextDecoder();
  throw new Error(
    `Cannot build the CUDA library: ${command} failed:\n${
      decoder.decode(stderr)
    }${decoder.decode(stdout)}`,
  );
}

function parent(path: string): string {
  return path.slice(0, Math.max(path.lastIndexOf("/"), 1));
}

async function main(): Promise<void> {
  const { arch, cache, nvcc, out } = parseArgs(Deno.args, {
    string: ["arch", "cache", "nvcc", "out"],
  });
  const started = performance.now();
  const path = await buildCuda({
    ...(arch !== undefined && { architectures: arch.split(",") }),
    // What is no type of caches is refused there.
    ...(cache !== undefined && { cache: cache as Precision["kind"] }),
    ...(nvcc !== undefined && { nvcc }),
    ...(out !== undefined && { out }),
  });
  const seconds = (performance.now() - started) / 1000;
  console.log(`Built ${path} in ${seconds.toFixed(0)} s`);
}

if (import.meta.main) {
  try {
    await main();
  } catch (error) {
    console.error(error instanceof Error ? error.message : error);
    Deno.exit(1);
  }
}
