/**
 * The same test body against every backend of this machine, and against the CUDA
 * backend on an emulated device.
 */
import type { Backend, BackendName } from "../../src/backends/backend.ts";
import { BackendUnavailableError } from "../../src/errors.ts";
import { openBackend } from "../../src/backends/open_backend.ts";
import {
  emulationMissing,
  openEmulation,
} from "../cuda_emulation/build_emulation.ts";

/** A backend that tests run on, or why they cannot. */
export interface Candidate {
  /** What it calls itself. */
  readonly name: BackendName;
  /** What tests on it are called. */
  readonly label: string;
  readonly unavailable?: string;
  /** Opens it. */
  open(): Promise<Backend>;
}

async function probe(name: BackendName): Promise<Candidate> {
  const open = async () => (await openBackend(name)).backend;
  try {
    await (await open())[Symbol.asyncDispose]();
    return { name, label: name, open };
  } catch (error) {
    if (!(error instanceof BackendUnavailableError)) throw error;
    return { name, label: name, open, unavailable: error.message };
  }
}

/** Every backend, in the order that tests run on them. */
export const candidates: readonly Candidate[] = await Promise.all(
  (["cpu", "webgpu", "cuda"] as const).map(probe),
);

const missing = await emulationMissing();

/** The CUDA backend on an emulated device: slow, but on any machine. */
export const emulated: Candidate = {
  name: "cuda",
  label: "cuda (emulated)",
  open: () => openEmulation(),
  ...(missing !== undefined && { unavailable: missing }),
};

/** The same with caches that hold bfloat16. */
const emulatedBfloat16: Candidate = {
  ...emulated,
  label: "cuda (emulated) with bfloat16 caches",
  open: () => openEmulation({ precision: "bfloat16" }),
};

for (const { label, unavailable } of [...candidates, emulated]) {
  if (unavailable) {
    console.warn(`Tests on ${label} are ignored: ${unavailable}`);
  }
}

/** Which backends a test runs on. */
export interface EachBackendOptions {
  /** Backends; all of them unless given. */
  readonly only?: readonly BackendName[];
  /** Whether the test is too much for an emulated device. */
  readonly large?: boolean;
  /** Whether the test also runs on an emulated device with bfloat16 caches. */
  readonly bfloat16?: boolean;
}

/**
 * Registers one test per backend. Where a backend is not available its test is
 * ignored, with the reason in its name.
 */
export function eachBackend(
  name: string,
  body: (backend: Backend, candidate: Candidate) => Promise<void>,
  { only, large = false, bfloat16 = false }: EachBackendOptions = {},
): void {
  const all = [
    ...candidates,
    ...large ? [] : [emulated],
    ...bfloat16 ? [emulatedBfloat16] : [],
  ];
  for (const candidate of all) {
    if (only !== undefined && !only.includes(candidate.name)) continue;
    const { label, unavailable } = candidate;
    Deno.test({
      name: `${name} [${label}]${
        unavailable ? ` (ignored: ${unavailable})` : ""
      }`,
      ignore: unavailable !== undefined,
      // Devices are opened by the runtime, which keeps resources of its own.
      sanitizeResources: candidate.name === "cpu",
      sanitizeOps: candidate.name === "cpu",
      async fn() {
        const backend = await candidate.open();
        await using _backend = backend;
        await body(backend, candidate);
      },
    });
  }
}
