/**
 * The backends that kernels are tested on.
 *
 * @module
 */
import type {
  Backend,
  DeviceBuffer,
  DeviceMatrix,
  Kernels,
} from "../../src/backends/backend.ts";
import type { Policy } from "../../src/policies/parts.ts";
import { unknownPart } from "../backends/unknown_part.ts";
import { openCuda } from "../../src/backends/cuda/open_cuda.ts";
import { probeWebGpu } from "../../src/backends/webgpu/probe.ts";
import { WebGpuBackend } from "../../src/backends/webgpu/webgpu_backend.ts";
import { BackendUnavailableError } from "../../src/errors.ts";
import {
  emulationMissing,
  openEmulation,
} from "../cuda_emulation/build_emulation.ts";
import { cases, productCases, SPLIT_BYTES, splitCases } from "./cases.ts";
import type { KernelCase } from "./kernel_case.ts";

/** A backend under test. */
export interface TestedBackend {
  readonly name: string;
  /** Why it cannot be tested here. */
  readonly missing?: string;
  readonly cases: readonly KernelCase[];
  /** Why a case is not for this backend, if it is not. */
  lacks?(kernelCase: KernelCase): string | undefined;
  open(): Promise<Backend>;
}

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
    {
      name: "cuda",
      cases,
      lacks: cudaLacks,
      open: () => openCuda(),
      ...noCuda,
    },
    {
      name: "cuda without a library for products",
      cases: productCases,
      open: () => openCuda({ ownProducts: true }),
      ...noCuda,
    },
    {
      name: "cuda (emulated)",
      cases,
      lacks: cudaLacks,
      open: () => openEmulation(),
      ...noEmulation,
    },
    {
      name: "cuda (emulated) with a library for products",
      cases: productCases,
      open: () => openEmulation({ ownProducts: false }),
      ...noEmulation,
    },
  ];
}

/** What CUDA kernels lack for a case: a part of its policy. */
function cudaLacks({ draw }: KernelCase): string | undefined {
  const nothing = {} as DeviceBuffer & DeviceMatrix;
  let policy: Policy | undefined;
  const seen = (args: { policy?: Policy }) => policy = args.policy;
  const kernels = new Proxy({}, { get: () => seen }) as Kernels;
  draw(1).scene.record(kernels, {
    buffer: () => nothing,
    matrix: () => nothing,
  });
  return policy && unknownPart(policy);
}
