/**
 * The CUDA backend's place among the others. What is here today finds out
 * whether the machine could run one and says what is missing.
 *
 * @module
 */
import { BackendUnavailableError } from "../../errors.ts";
import type { Backend } from "../backend.ts";

/** Name of the driver's library on Linux. */
const DRIVER = "libcuda.so.1";

/** The driver's functions that are needed to ask for its devices. */
const symbols = {
  // CUresult cuInit(unsigned int flags)
  cuInit: { parameters: ["u32"], result: "i32" },
  // CUresult cuDeviceGetCount(int *count)
  cuDeviceGetCount: { parameters: ["buffer"], result: "i32" },
} as const satisfies Deno.ForeignLibraryInterface;

/**
 * Opens the CUDA backend.
 *
 * @throws {BackendUnavailableError} Always, in this version: with the first
 * thing that is missing, which is the library itself where there is a driver.
 */
// deno-lint-ignore require-await
export async function openCuda(): Promise<Backend> {
  checkDriver();
  throw new BackendUnavailableError("cuda", {
    reason: "this version has no CUDA library",
    remedy: "use the webgpu backend, which runs on the same GPU",
  });
}

/**
 * Checks that the NVIDIA driver is there and has a device.
 *
 * @throws {BackendUnavailableError} If not.
 */
function checkDriver(): void {
  let driver: Deno.DynamicLibrary<typeof symbols>;
  try {
    driver = Deno.dlopen(DRIVER, symbols);
  } catch (error) {
    throw error instanceof Deno.errors.NotCapable
      ? new BackendUnavailableError("cuda", {
        reason: "no permission to open native libraries",
        remedy: "run with --allow-ffi",
      })
      : new BackendUnavailableError("cuda", {
        reason: `there is no NVIDIA driver (${DRIVER} cannot be opened)`,
        remedy: "install the driver of an NVIDIA GPU or use another backend",
      });
  }
  try {
    const count = new Int32Array(1);
    const status = driver.symbols.cuInit(0) ||
      driver.symbols.cuDeviceGetCount(count);
    if (status !== 0 || count[0] === 0) {
      throw new BackendUnavailableError("cuda", {
        reason: status !== 0
          ? `the NVIDIA driver reports error ${status}`
          : "the NVIDIA driver finds no GPU",
        remedy: "check that nvidia-smi lists a GPU or use another backend",
      });
    }
  } finally {
    driver.close();
  }
}
