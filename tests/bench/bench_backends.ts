/**
 * Registers benchmarks: a group for each number of slots, and in it one for
 * each backend of this machine.
 */
import type { Backend, BackendName } from "../../src/backends/backend.ts";
import { openBackend } from "../../src/backends/open_backend.ts";
import { BackendUnavailableError } from "../../src/errors.ts";
import type { Subject } from "./subjects.ts";

/** Slots per head that are measured. */
const SLOT_COUNTS = [256, 1024, 4096];

/**
 * Registers benchmarks of `operation`. Names are those of the backends, with
 * the variant where there are several; the first one is the baseline.
 *
 * @param rounds How often each is run. Without `n` Deno decides: at least ten
 * times, and for half a second.
 */
export async function benchBackends(
  operation: string,
  variants: Readonly<
    Record<string, (backend: Backend, slots: number) => Promise<Subject>>
  >,
  // The CPU takes seconds for what a GPU does in milliseconds.
  rounds: Pick<Deno.BenchDefinition, "n" | "warmup"> = { n: 4, warmup: 1 },
): Promise<void> {
  const backends = await openBackends();
  for (const slots of SLOT_COUNTS) {
    let baseline = true;
    for (const backend of backends) {
      for (const [variant, prepare] of Object.entries(variants)) {
        let subject: Subject | undefined;
        Deno.bench({
          name: variant === "" ? backend.name : `${backend.name}, ${variant}`,
          group: `${operation}, ${slots} slots`,
          baseline,
          ...rounds,
          async fn(bench) {
            subject ??= await prepare(backend, slots);
            subject.restore?.();
            bench.start();
            await subject.run();
            bench.end();
          },
        });
        baseline = false;
      }
    }
  }
}

/** Opens the backends that there are, and names the others on standard error. */
async function openBackends(): Promise<Backend[]> {
  const backends: Backend[] = [];
  for (const name of ["cpu", "webgpu", "cuda"] satisfies BackendName[]) {
    try {
      backends.push((await openBackend(name)).backend);
    } catch (error) {
      if (!(error instanceof BackendUnavailableError)) throw error;
      console.error(`Not measured: ${error.message}`);
    }
  }
  return backends;
}
