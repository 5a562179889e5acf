/**
 * Windows that slide over documents.
 *
 * @module
 */
import { documentId, type EvaluationDocument } from "./documents.ts";
import type { TextCodec } from "./model.ts";
import { Random } from "./random.ts";

/** A part of a document: ids that are read, and ids that are scored. */
export interface TextWindow {
  /** `source/name` of the document. */
  readonly document: string;
  /** Tokens of the document before the window. */
  readonly start: number;
  /** Ids that are read first. */
  readonly prompt: readonly number[];
  /** Ids that come after them. */
  readonly continuation: readonly number[];
}

/** Sizes of windows, in tokens. */
export interface WindowShape {
  /** Ids that are read first. */
  readonly prompt: number;
  /** Ids that are scored. */
  readonly continuation: number;
  /**
   * Distance between windows (default: `continuation`, so that no id is scored
   * twice).
   */
  readonly stride?: number;
}

/** Options of {@linkcode selectWindows}. */
export interface WindowOptions extends WindowShape {
  /** Windows per document at most (default 1). */
  readonly windowsPerDocument?: number;
  /** Documents at most (default: all that are long enough). */
  readonly documents?: number;
  /** Seed of the choice (default 1). */
  readonly seed?: number;
}

/** All windows of a text that fit into it. */
export function slideWindows(
  ids: readonly number[],
  { prompt, continuation, stride = continuation }: WindowShape,
): Omit<TextWindow, "document">[] {
  const windows: Omit<TextWindow, "document">[] = [];
  const length = prompt + continuation;
  for (let start = 0; start + length <= ids.length; start += stride) {
    windows.push({
      start,
      prompt: ids.slice(start, start + prompt),
      continuation: ids.slice(start + prompt, start + length),
    });
  }
  return windows;
}

/**
 * Chooses windows at random, the same for the same seed. Documents shorter
 * than a window have none.
 *
 * @throws {RangeError} If no document is long enough.
 */
export function selectWindows(
  documents: readonly EvaluationDocument[],
  codec: TextCodec,
  options: WindowOptions,
): TextWindow[] {
  const { windowsPerDocument = 1, seed = 1 } = options;
  const length = options.prompt + options.continuation;
  const random = new Random(seed, "documents");
  const chosen: TextWindow[] = [];
  let used = 0;
  for (const document of random.sample(documents, documents.length)) {
    if (used === (options.documents ?? Infinity)) break;
    const id = documentId(document);
    const all = slideWindows(
      codec.encode(document.text, { addSpecialTokens: false }),
      options,
    );
    if (all.length === 0) continue;
    used++;
    const some = new Random(seed, id).sample(all, windowsPerDocument);
    chosen.push(...some.map((window) => ({ document: id, ...window })));
  }
  if (chosen.length === 0) {
    throw new RangeError(
      `Cannot find a window of ${length} tokens: expected a document that long`,
    );
  }
  return chosen;
}
