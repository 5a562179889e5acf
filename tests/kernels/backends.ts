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
  cases,
  productCases,
  sharedMemoryCases,
  SPLIT_BYTES,
  splitCases,
} from "./cases.ts";
import type { KernelCase } from "./kernel_case.ts";

/** A backend under test. */
export interface TestedBackend {
  readonly name: string;
  /** Why it cannot be tested here. */
  readonly missing?: string;
  readonly cases: readonly KernelCase[];
  /** Most rows of a step whose products have 32-bit precision, if not any. */
  readonly exactRows?: number;
  open(): Promise<Backend>;
}

/**
 * The CUDA backend rounds the activations of longer steps to the 11 bits of a
 * half: weights are halves anyway, and a second half would double the work of
 * the tensor cores, which bound such steps. The attention of a chunk does the
 * same with queries and with the weights that multiply values.
 */
const CUDA = { exactRows: 32 };

/** All backends beside the reference, and whether they are there. */
export async function testedBackends(): Promise<TestedBackend[]> {
  const probe = await probeWebGpu();
  const missing = probe.available ? {} : { missing: probe.reason };
  const cuda = await openCuda().catch((error) => {
    if (error instanceof BackendUnavailableError) return error.message;
    throw error;
  });
  const noCuda = typeof cuda === "string" ? { missing: cuda } : {};
  if (typeof cuda !== "string") await cuda[Symbol.asyncDispose]();
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
      name: "cuda (emulated)",
      cases,
      open: () => openEmulation(),
      ...CUDA,
      ...noEmulation,
    },
    {
      name: "cuda (emulated) with less shared memory",
      cases: sharedMemoryCases,
      open: () => openEmulation({ device: 1 }),
      ...CUDA,
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
