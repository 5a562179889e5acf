/**
 * The same test body against every backend of this machine.
 */
import type { Backend, BackendName } from "../../src/backends/backend.ts";
import { BackendUnavailableError } from "../../src/errors.ts";
import { openBackend } from "../../src/backends/open_backend.ts";

/** A backend that tests run on, or why they cannot. */
export interface Candidate {
  readonly name: BackendName;
  readonly unavailable?: string;
}

async function probe(name: BackendName): Promise<Candidate> {
  try {
    const { backend } = await openBackend(name);
    await backend[Symbol.asyncDispose]();
    return { name };
  } catch (error) {
    if (!(error instanceof BackendUnavailableError)) throw error;
    return { name, unavailable: error.message };
  }
}

/** Every backend, in the order that tests run on them. */
export const candidates: readonly Candidate[] = await Promise.all(
  (["cpu", "webgpu", "cuda"] as const).map(probe),
);
for (const { name, unavailable } of candidates) {
  if (unavailable) console.warn(`Tests on ${name} are ignored: ${unavailable}`);
}

/**
 * Registers one test per backend. Where a backend is not available its test is
 * ignored, with the reason in its name.
 */
export function eachBackend(
  name: string,
  body: (backend: Backend) => Promise<void>,
  { only }: { only?: readonly BackendName[] } = {},
): void {
  for (const candidate of candidates) {
    if (only !== undefined && !only.includes(candidate.name)) continue;
    const { unavailable } = candidate;
    Deno.test({
      name: `${name} [${candidate.name}]${
        unavailable ? ` (ignored: ${unavailable})` : ""
      }`,
      ignore: unavailable !== undefined,
      // Devices are opened by the runtime, which keeps resources of its own.
      sanitizeResources: candidate.name === "cpu",
      sanitizeOps: candidate.name === "cpu",
      async fn() {
        const { backend } = await openBackend(candidate.name);
        await using _backend = backend;
        await body(backend);
      },
    });
  }
}
