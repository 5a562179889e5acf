/**
 * Opens a backend by name, or the best one there is.
 *
 * @module
 */
import { BackendUnavailableError } from "../errors.ts";
import type { Backend, BackendName } from "./backend.ts";
import { CpuBackend } from "./cpu/cpu_backend.ts";
import { openCuda } from "./cuda/open_cuda.ts";
import { WebGpuBackend } from "./webgpu/webgpu_backend.ts";

/** A backend, and what was tried before it. */
export interface OpenedBackend {
  /** The backend. */
  readonly backend: Backend;
  /** Why each faster backend was passed over; empty unless asked for `auto`. */
  readonly skipped: readonly BackendUnavailableError[];
}

/** Backends that `auto` tries, the fastest first. */
const openers: readonly (readonly [BackendName, () => Promise<Backend>])[] = [
  ["cuda", openCuda],
  ["webgpu", () => WebGpuBackend.open()],
  ["cpu", () => Promise.resolve(new CpuBackend())],
];

/**
 * Opens the backend called `name`. `auto` opens the first of CUDA, WebGPU and
 * CPU that is available, and says why the ones before it are not.
 *
 * @throws {BackendUnavailableError} If the backend named cannot be opened.
 * @throws {TypeError} If there is no backend of that name.
 */
export async function openBackend(
  name: BackendName | "auto",
): Promise<OpenedBackend> {
  const wanted = openers.filter(([n]) => name === "auto" || n === name);
  if (wanted.length === 0) {
    throw new TypeError(
      `Cannot open backend "${name}": expected auto, ${
        openers.map(([n]) => n).join(", ")
      }`,
    );
  }
  const skipped: BackendUnavailableError[] = [];
  for (const [, open] of wanted) {
    try {
      return { backend: await open(), skipped };
    } catch (error) {
      if (name !== "auto" || !(error instanceof BackendUnavailableError)) {
        throw error;
      }
      skipped.push(error);
    }
  }
  throw skipped.at(-1)!;
}
