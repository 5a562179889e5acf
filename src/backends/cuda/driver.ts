/**
 * Whether there is an NVIDIA driver, without the CUDA library.
 *
 * @module
 */
import { BackendUnavailableError } from "../../errors.ts";

/** Name of the driver's library on Linux. */
const DRIVER = "libcuda.so.1";

/** What the driver says where every GPU is hidden: `CUDA_ERROR_NO_DEVICE`. */
const NO_DEVICE = 100;

/** The driver's functions that are needed to ask for its devices. */
const driverSymbols = {
  // CUresult cuInit(unsigned int flags)
  cuInit: { parameters: ["u32"], result: "i32" },
  // CUresult cuDeviceGetCount(int *count)
  cuDeviceGetCount: { parameters: ["buffer"], result: "i32" },
} as const satisfies Deno.ForeignLibraryInterface;

/**
 * Checks that native libraries may be opened. Nobody is asked: a backend that
 * is merely tried must not prompt.
 *
 * @throws {BackendUnavailableError} If not.
 */
export function checkPermission(): void {
  const { state, partial } = Deno.permissions.querySync({ name: "ffi" });
  if (state === "granted" || partial) return;
  throw new BackendUnavailableError("cuda", {
    reason: "no permission to open native libraries",
    remedy: "run with --allow-ffi",
  });
}

/**
 * Checks that the NVIDIA driver is there and has a device.
 *
 * @throws {BackendUnavailableError} If not.
 */
export function checkDriver(): void {
  let driver: Deno.DynamicLibrary<typeof driverSymbols>;
  try {
    driver = Deno.dlopen(DRIVER, driverSymbols);
  } catch (error) {
    throw error instanceof Deno.errors.NotCapable
      ? new BackendUnavailableError("cuda", {
        reason: `no permission to open ${DRIVER}`,
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
        reason: status === 0 || status === NO_DEVICE
          ? "the NVIDIA driver finds no GPU"
          : `the NVIDIA driver reports error ${status}`,
        remedy: "check that nvidia-smi lists a GPU or use another backend",
      });
    }
  } finally {
    driver.close();
  }
}
