/**
 * An open CUDA library, and what its status codes mean.
 *
 * @module
 */
import {
  BackendUnavailableError,
  DeviceLostError,
  KernelError,
} from "../../errors.ts";
import type { Precision } from "../../policies/parts.ts";
import type { LibraryPlace } from "./find_library.ts";
import {
  ABI_VERSION,
  CACHE_TYPES,
  type CudaSymbols,
  Status,
  symbols,
  versionSymbols,
} from "./symbols.ts";

/** Longest sentence about a failure, in bytes. */
const ERROR_BYTES = 512;

/** What to do where there is no library that fits. */
export const BUILD_REMEDY = "build it with `deno task build:cuda`";

/** The same for a library whose caches hold elements of a type. */
function buildRemedy(precision: Precision["kind"]): string {
  return precision === "half"
    ? BUILD_REMEDY
    : `build it with \`deno task build:cuda --cache ${precision}\``;
}

/** The functions of a library of the right version. */
export class CudaLibrary {
  /** The functions. */
  readonly symbols: CudaSymbols;
  /** What caches hold. */
  readonly precision: Precision["kind"];
  readonly #library: Deno.DynamicLibrary<typeof symbols>;

  /**
   * Opens the library at `place`.
   *
   * @param precision What its caches must hold (default halves).
   * @throws {BackendUnavailableError} If there is none, or one of another
   * version or for other caches.
   */
  constructor(
    { path, named }: LibraryPlace,
    precision: Precision["kind"] = "half",
  ) {
    const missing = (error: unknown) => {
      const why = error instanceof Error ? error.message : String(error);
      return new BackendUnavailableError("cuda", {
        reason: `${
          named === undefined
            ? "there is no usable CUDA library of this version in the cache"
            : `the library that ${named} names cannot be opened`
        }: ${why.replace(/^(Could not open library: )+/, "")}`,
        remedy: buildRemedy(precision),
      });
    };
    let version: number;
    try {
      const probe = Deno.dlopen(path, versionSymbols);
      version = probe.symbols.skv_abi_version();
      probe.close();
    } catch (error) {
      throw missing(error);
    }
    if (version !== ABI_VERSION) {
      throw new BackendUnavailableError("cuda", {
        reason:
          `the library ${path} has interface version ${version}, but this package needs ${ABI_VERSION}`,
        remedy: buildRemedy(precision),
      });
    }
    try {
      this.#library = Deno.dlopen(path, symbols);
    } catch (error) {
      throw missing(error);
    }
    this.symbols = this.#library.symbols;
    const number = this.symbols.skv_cache_type();
    const found = CACHE_TYPES[number];
    if (found !== precision) {
      this.close();
      throw new BackendUnavailableError("cuda", {
        reason: `the library ${path} was built for caches of ${
          found ?? `type ${number}`
        }, expected ${precision}`,
        remedy: buildRemedy(precision),
      });
    }
    this.precision = found;
  }

  /** The sentence about the last failure; `null` stands for that of opening. */
  lastError(context: Deno.PointerValue): string {
    const text = new Uint8Array(ERROR_BYTES);
    this.symbols.skv_last_error(context, text, BigInt(ERROR_BYTES));
    return new TextDecoder().decode(text.subarray(0, text.indexOf(0)));
  }

  /** Closes the library. Nothing of it may be under way. */
  close(): void {
    this.#library.close();
  }
}

/**
 * The exception for a status of the library.
 *
 * @param text What the library says about it.
 * @param doing What was tried, after "Cannot".
 */
export function errorOf(status: number, text: string, doing: string): Error {
  switch (status) {
    case Status.outOfMemory:
    case Status.tooLarge:
      return new RangeError(`Cannot ${doing}: ${text}`);
    case Status.noDevice:
      return new BackendUnavailableError("cuda", {
        reason: text,
        remedy: "check that nvidia-smi lists a GPU or use another backend",
      });
    case Status.architecture:
      return new BackendUnavailableError("cuda", {
        reason: text,
        remedy: BUILD_REMEDY,
      });
    case Status.kernel: {
      const [, kernel, fault] = text.match(/^cannot run kernel (\w+): (.*)$/) ??
        [];
      return kernel !== undefined && fault !== undefined
        ? new KernelError(kernel, fault)
        : new KernelError(
          "of an earlier program",
          `${text} (set STEADYKV_CUDA_CHECK=1 to learn which kernel)`,
        );
    }
    case Status.deviceLost:
      return new DeviceLostError(text);
    default:
      return new TypeError(`Cannot ${doing}: ${text}`);
  }
}
