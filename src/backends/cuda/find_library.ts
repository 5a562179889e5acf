/**
 * Where the CUDA library is: at a path that was given, at the one that
 * `STEADYKV_CUDA_LIBRARY` names, or in the cache folder where
 * `deno task build:cuda` puts it.
 *
 * @module
 */
import type { Precision } from "../../policies/parts.ts";

/** Where a library should be. */
export interface LibraryPlace {
  /** Path of the library. */
  readonly path: string;
  /** Who named the path; nobody where it is that of the cache. */
  readonly named?: string;
}

/** Environment variable that names a library. */
export const LIBRARY_VARIABLE = "STEADYKV_CUDA_LIBRARY";

/** File names of the libraries, by what their caches hold. */
const LIBRARY_FILES: Readonly<Record<Precision["kind"], string>> = {
  half: "libsteadykv_cuda.so",
  bfloat16: "libsteadykv_cuda_bfloat16.so",
};

/** An environment variable; undefined where it may not be read. */
export function readVariable(variable: string): string | undefined {
  const { state } = Deno.permissions.querySync({ name: "env", variable });
  const value = state === "granted" ? Deno.env.get(variable) : undefined;
  return value === "" ? undefined : value;
}

/**
 * Finds where the library should be; whether it is there shows when it opens.
 *
 * @param path Where it is, if somebody said so.
 * @param precision What its caches hold (default halves).
 */
export async function findLibrary(
  path?: string,
  precision?: Precision["kind"],
): Promise<LibraryPlace> {
  if (path !== undefined) return { path, named: "the option" };
  const variable = readVariable(LIBRARY_VARIABLE);
  if (variable !== undefined) {
    return { path: variable, named: LIBRARY_VARIABLE };
  }
  return { path: await cachePath(precision) };
}

/**
 * Path of the library in the cache: the folder's name is a hash of the sources,
 * so that a library of another version is never taken.
 *
 * @param precision What its caches hold (default halves).
 */
export async function cachePath(
  precision: Precision["kind"] = "half",
): Promise<string> {
  const { cudaSources } = await import("../../../cuda/sources.generated.ts");
  const text = JSON.stringify(Object.entries(cudaSources).sort());
  const digest = await crypto.subtle.digest(
    "SHA-256",
    new TextEncoder().encode(text),
  );
  const hash = new Uint8Array(digest).subarray(0, 8).toHex();
  return `${cacheFolder()}/steadykv/cuda-${hash}/${LIBRARY_FILES[precision]}`;
}

/** The user's folder for caches; the current one where it is not known. */
export function cacheFolder(): string {
  const home = readVariable("HOME");
  return readVariable("XDG_CACHE_HOME") ??
    (home === undefined ? ".cache" : `${home}/.cache`);
}
