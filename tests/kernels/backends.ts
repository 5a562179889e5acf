/**
 * The backends that kernels are tested on.
 *
 * @module
 */
import type { Backend } from "../../src/backends/backend.ts";
import { probeWebGpu } from "../../src/backends/webgpu/probe.ts";
import { WebGpuBackend } from "../../src/backends/webgpu/webgpu_backend.ts";
import { cases, SPLIT_BYTES, splitCases } from "./cases.ts";
import type { KernelCase } from "./kernel_case.ts";

/** A backend under test. */
export interface TestedBackend {
  readonly name: string;
  /** Why it cannot be tested here. */
  readonly missing?: string;
  readonly cases: readonly KernelCase[];
  open(): Promise<Backend>;
}

/** All backends beside the reference, and whether they are there. */
export async function testedBackends(): Promise<TestedBackend[]> {
  const probe = await probeWebGpu();
  const missing = probe.available ? {} : { missing: probe.reason };
  return [
    { name: "webgpu", cases, open: () => WebGpuBackend.open(), ...missing },
    {
      name: "webgpu with matrices in several blocks",
      cases: splitCases,
      open: () => WebGpuBackend.open({ maxBlockBytes: SPLIT_BYTES }),
      ...missing,
    },
  ];
}
