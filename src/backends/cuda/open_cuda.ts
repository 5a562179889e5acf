/**
 * Opens the CUDA backend, or says what is missing.
 *
 * @module
 */
import { BackendUnavailableError } from "../../errors.ts";
import type { Backend } from "../backend.ts";
import { CudaBackend } from "./cuda_backend.ts";
import type { Precision } from "../../policies/parts.ts";
import { checkDriver, checkPermission } from "./driver.ts";
import { findLibrary, readVariable } from "./find_library.ts";
import { CudaLibrary } from "./library.ts";

/** How to open the CUDA backend. */
export interface CudaOptions {
  /** Path of the library, in place of the one that is looked for. */
  readonly library?: string;
  /**
   * What caches hold (default halves). Each type has a library of its own: see
   * `deno task build:cuda --cache`.
   */
  readonly precision?: Precision["kind"];
  /** Index of the GPU (default 0). */
  readonly device?: number;
  /**
   * Whether every kernel is waited for, so that a fault has the kernel's name;
   * slow. By default where `STEADYKV_CUDA_CHECK` is 1.
   */
  readonly checkEveryKernel?: boolean;
  /**
   * Whether all products are made by kernels of this package. Otherwise those
   * of 128 rows and more, which prompts have, go to NVIDIA's cuBLASLt where
   * that is installed, or `STEADYKV_CUBLASLT` has its path. By default where
   * `STEADYKV_CUDA_OWN_PRODUCTS` is 1.
   */
  readonly ownProducts?: boolean;
}

/**
 * Opens the CUDA backend. Needs `--allow-ffi`, and `--allow-env` to find the
 * library in the cache folder.
 *
 * @throws {BackendUnavailableError} If something is missing: the permission,
 * the driver, a GPU, the library for such caches, or code for this GPU in the library.
 */
export async function openCuda(options: CudaOptions = {}): Promise<Backend> {
  checkPermission();
  checkDriver();
  const place = await findLibrary(options.library, options.precision);
  let library: CudaLibrary;
  try {
    library = new CudaLibrary(place, options.precision);
  } catch (error) {
    throw error instanceof Deno.errors.NotCapable
      ? new BackendUnavailableError("cuda", {
        reason: `no permission to open ${place.path}`,
        remedy: "run with --allow-ffi",
      })
      : error;
  }
  try {
    return CudaBackend.open(library, {
      device: options.device ?? 0,
      checkEveryKernel: options.checkEveryKernel ??
        readVariable("STEADYKV_CUDA_CHECK") === "1",
      ownProducts: options.ownProducts ??
        readVariable("STEADYKV_CUDA_OWN_PRODUCTS") === "1",
    });
  } catch (error) {
    library.close();
    throw error;
  }
}
