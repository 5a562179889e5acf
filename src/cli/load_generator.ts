/**
 * From flags to a generator, with progress.
 *
 * @module
 */
import { Generator } from "../generate/generator.ts";
import type { Values } from "./flags.ts";
import { type modelFlags, modelFolderOf, policyOf } from "./model_flags.ts";
import { LoadingProgress } from "./progress.ts";
import { faint, printError } from "./terminal.ts";
import { describeSkipped } from "./unavailable.ts";

/** Loads the model that the flags name, and says which backend it runs on. */
export async function loadGenerator(
  values: Values<typeof modelFlags>,
  { signal, quiet }: { signal: AbortSignal; quiet: boolean },
): Promise<Generator> {
  const folder = await modelFolderOf(values);
  const cache = await policyOf(values);
  const progress = new LoadingProgress({ enabled: !quiet });
  let generator: Generator;
  try {
    generator = await Generator.load(folder, {
      cache,
      backend: values.backend ?? "auto",
      onProgress: progress.onProgress,
      signal,
    });
  } finally {
    await progress.stop();
  }
  const { skippedBackends } = generator;
  if (!quiet && skippedBackends.length > 0) {
    const { backend } = generator.stats();
    printError(faint(describeSkipped(backend, skippedBackends)) + "\n");
  }
  return generator;
}
