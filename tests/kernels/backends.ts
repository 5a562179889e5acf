/**
 * The backends that kernels are tested on.
 *
 * @module
 */
import type { Backend } from "../../src/backends/backend.ts";
import { openCuda } from "../../src/backends/cuda/open_cuda.ts";
import { probeWebGpu } from "../../src/backends/webgpu/probe.ts";
import { WebGpuBackend } from "../../src/backends/webgpu/webgpu_backend.ts";
import { BackendUnavailableError } from "../../src/errors.ts";
import {
  emulationMissing,
  openEmulation,
} from "../cuda_emulation/build_emulation.ts";
import {
  cacheCases,
  cases,
  olderCases,
  productCases,
  SPLIT_BYTES,
  splitCases,
} from "./cases.ts";
import { type KernelCase, PLAIN, type Precision } from "./kernel_case.ts";
import type { Policy } from "../../src/policies/parts.ts";
import { BFLOAT16 } from "./tolerance.ts";

/** A backend under test. */
export interface TestedBackend {
  readonly name: string;
  /** Why it cannot be tested here. */
  readonly missing?: string;
  readonly cases: readonly KernelCase[];
  /** How precise it is, if not {@link PLAIN}. */
  readonly precision?: Precision;
  open(): Promise<Backend>;
}

/**
 * The CUDA backend rounds the activations of longer steps to the 11 bits of a
 * half: weights are halves anyway, and a second half would double the work of
 * the tensor cores, which bound such steps. The attention of a chunk does the
 * same with queries and with the weights that multiply values.
 */
const CUDA = { precision: { ...PLAIN, exactRows: 32 } };

/**
 * With caches of bfloat16 a query, and a weight that multiplies values, is split
 * in two of them in the place of two halves: see cuda/lib/cached.cuh.
 */
const CUDA_BFLOAT16 = {
  precision: { ...CUDA.precision, stored: BFLOAT16, factors: 2 ** -17 },
};

/** Why there is no CUDA backend with caches of a type. */
async function missingCuda(
  precision: Policy["precision"]["kind"],
): Promise<{ missing?: string }> {
  try {
    await using _backend = await openCuda({ precision });
    return {};
  } catch (error) {
    if (error instanceof BackendUnavailableError) {
      return { missing: error.message };
    }
    throw error;
  }
}

/** All backends beside the reference, and whether they are there. */
export async function testedBackends(): Promise<TestedBackend[]> {
  const probe = await probeWebGpu();
  const missing = probe.available ? {} : { missing: probe.reason };
  const noCuda = await missingCuda("half");
  const noBfloat16 = await missingCuda("bfloat16");
  const noCompiler = await emulationMissing();
  const noEmulation = noCompiler === undefined ? {} : { missing: noCompiler };
  return [
    { name: "webgpu", cases, open: () => WebGpuBackend.open(), ...missing },
    {
      name: "webgpu with matrices in several blocks",
      cases: splitCases,
      open: () => WebGpuBackend.open({ maxBlockBytes: SPLIT_BYTES }),
      ...missing,
    },
    { name: "cuda", cases, open: () => openCuda(), ...CUDA, ...noCuda },
    {
      name: "cuda without a library for products",
      cases: productCases,
      open: () => openCuda({ ownProducts: true }),
      ...CUDA,
      ...noCuda,
    },
    {
      name: "cuda with bfloat16 caches",
      cases: cacheCases,
      open: () => openCuda({ precision: "bfloat16" }),
      ...CUDA_BFLOAT16,
      ...noBfloat16,
    },
    {
      name: "cuda (emulated)",
      cases,
      open: () => openEmulation(),
      ...CUDA,
      ...noEmulation,
    },
    {
      name: "cuda (emulated) of an older device",
      cases: olderCases,
      open: () => openEmulation({ device: 1 }),
      ...CUDA,
      ...noEmulation,
    },
    {
      name: "cuda (emulated) with bfloat16 caches",
      cases: cacheCases,
      open: () => openEmulation({ precision: "bfloat16" }),
      ...CUDA_BFLOAT16,
      ...noEmulation,
    },
    {
      name: "cuda (emulated) with a library for products",
      cases: productCases,
      open: () => openEmulation({ ownProducts: false }),
      ...CUDA,
      ...noEmulation,
    },
  ];
}
