/**
 * Opens a backend by name, or the best one there is.
 *
 * @module
 */
import { BackendUnavailableError } from "../errors.ts";
import type { Backend, BackendName } from "./backend.ts";
import type { Precision } from "../policies/parts.ts";
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

/** Options of {@linkcode openBackend}. */
export interface OpenBackendOptions {
  /**
   * How keys and values are stored (default `"half"`). CUDA alone has others:
   * see {@link Policy.precision}.
   */
  readonly precision?: Precision["kind"];
}

/** Backends that `auto` tries, the fastest first. */
const openers: readonly (readonly [
  BackendName,
  (options: OpenBackendOptions) => Promise<Backend>,
])[] = [
  ["cuda", openCuda],
  ["webgpu", () => WebGpuBackend.open()],
  ["cpu", () => Promise.resolve(new CpuBackend())],
];

/** Backends that can store keys and values so. */
const stores: Readonly<Record<Precision["kind"], readonly BackendName[]>> = {
  half: ["cuda", "webgpu", "cpu"],
  bfloat16: ["cuda"],
};

/**
 * Opens the backend called `name`. `auto` opens the first of CUDA, WebGPU and
 * CPU that is available, and says why the ones before it are not. Where keys and
 * values are to be bfloat16, that is CUDA or none.
 *
 * @throws {BackendUnavailableError} If the backend named cannot be opened.
 * @throws {TypeError} If there is no backend of that name, or it cannot store
 * keys and values with that precision.
 */
export async function openBackend(
  name: BackendName | "auto",
  options: OpenBackendOptions = {},
): Promise<OpenedBackend> {
  const { precision = "half" } = options;
  if (!Object.hasOwn(stores, precision)) {
    throw new TypeError(
      `Cannot open a backend with precision "${precision}": expected one of ${
        Object.keys(stores).join(", ")
      }`,
    );
  }

  const wanted = openers.filter(([n]) => name === "auto" || n === name);
  if (wanted.length === 0) {
    throw new TypeError(
      `Cannot open backend "${name}": expected auto, ${
        openers.map(([n]) => n).join(", ")
      }`,
    );
  }
  const able = wanted.filter(([n]) => stores[precision].includes(n));
  if (able.length === 0) {
    throw new TypeError(
      `Cannot open backend "${name}" with precision "${precision}": expected backend "${
        stores[precision].join('" or "')
      }"`,
    );
  }
  const skipped: BackendUnavailableError[] = [];
  for (const [, open] of able) {
    try {
      return { backend: await open(options), skipped };
    } catch (error) {
      if (name !== "auto" || !(error instanceof BackendUnavailableError)) {
        throw error;
      }
      skipped.push(error);
    }
  }
  throw skipped.at(-1)!;
}
