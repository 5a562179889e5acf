/**
 * What commands that measure a model work on: texts, and a model that is loaded
 * when it is first needed.
 *
 * @module
 */
import { openBackend } from "../backends/open_backend.ts";
import {
  type EvaluationDocument,
  loadDocuments,
} from "../evaluate/documents.ts";
import {
  type EvaluationModel,
  openEvaluationModel,
} from "../evaluate/model.ts";
import { text, UsageError, type Values } from "./flags.ts";
import { modelFlags } from "./model_flags.ts";
import { LoadingProgress } from "./progress.ts";

/** Which model is measured where, and on what. */
export const inputFlags = {
  model: modelFlags.model,
  backend: modelFlags.backend,
  precision: modelFlags.precision,
  documents: text("FILE", "Held-out text: one {source, name, text} a line"),
} as const;

/** Options of {@linkcode openInput}. */
export interface OpenInputOptions {
  /** Folder of the model. */
  readonly folder: string;
  /** Whether nothing is said about how far loading is. */
  readonly quiet: boolean;
  /** Stops loading with the signal's reason. */
  readonly signal: AbortSignal;
}

/** What is measured. Disposing frees the model and closes the backend. */
export interface EvaluationInput extends AsyncDisposable {
  /** File of the documents. */
  readonly file: string;
  /** The texts. */
  readonly documents: readonly EvaluationDocument[];
  /** The model. */
  readonly model: EvaluationModel;
}

/**
 * Opens what the flags name: reads the documents, then opens the backend and
 * the model.
 *
 * @throws {UsageError} If no documents are named.
 * @throws {TypeError} If the backend has not the precision.
 * @throws {EvaluationFormatError} If the documents are missing or damaged.
 * @throws {BackendUnavailableError} If the backend cannot be opened.
 * @throws {ModelFormatError} If a file of the model is missing or damaged.
 */
export async function openInput(
  { documents: file, backend: name = "auto", precision = "half" }: Values<
    typeof inputFlags
  >,
  { folder, quiet, signal }: OpenInputOptions,
): Promise<EvaluationInput> {
  if (file === undefined) {
    throw new UsageError("Cannot measure without text: expected --documents");
  }
  const documents = await loadDocuments(file);
  await using stack = new AsyncDisposableStack();
  const { backend } = await openBackend(name, { precision });
  stack.use(backend);
  const loading = new LoadingProgress({ enabled: !quiet });
  const { onProgress } = loading;
  const model = stack.use(
    await openEvaluationModel(folder, { backend, onProgress, signal }),
  );
  const open = stack.move();
  return {
    file,
    documents,
    model: {
      ...model,
      weights: () => model.weights().finally(() => loading.stop()),
    },
    [Symbol.asyncDispose]: () => open.disposeAsync(),
  };
}
