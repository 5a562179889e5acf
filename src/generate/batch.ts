/**
 * Several texts at once: checks, sampling options of each, ids to text.
 *
 * @module
 */
import { CacheFullError } from "../errors.ts";
import type { ModelFolder } from "../model/model_folder.ts";
import { sampleBatch } from "./batch_loop.ts";
import type { Engine } from "./engine.ts";
import type { BatchToken, ChatOptions } from "./options.ts";
import type { ResolvedSampling } from "./sampling.ts";
import { TextWriter } from "./text_writer.ts";

/** What a batch is generated with. */
export interface BatchOptions
  extends Pick<ChatOptions, "signal" | "onPrefill"> {
  readonly engine: Engine;
  readonly model: ModelFolder;
  /** Tokens that a sequence has room for, `Infinity` if it compresses. */
  readonly capacity: number;
  /** Ids of each text at most. */
  readonly maxTokens: number;
  /** How ids are drawn; text `i` has the seed plus `i`. */
  readonly sampling: ResolvedSampling;
  /** Strings that end a text. */
  readonly stop: readonly string[];
  /** Decode steps that are enqueued and read together. */
  readonly stepsPerRead: number;
}

/**
 * Checks that there are prompts, and no more than sequences.
 *
 * @throws {RangeError} If not.
 */
export function checkBatch(prompts: number, sequences: number): void {
  if (prompts === 0) {
    throw new RangeError(
      "Cannot generate without a prompt: expected at least one",
    );
  }
  if (prompts <= sequences) return;
  throw new RangeError(
    `Cannot generate ${prompts} texts together: expected at most ${sequences}, the sequences that the generator was loaded with`,
  );
}

/**
 * Generates a text for each prompt in an engine that was reset.
 *
 * @param prompts Ids, at least one in each.
 * @throws {CacheFullError} If a prompt does not fit; once all other texts have
 * ended, if a text did not.
 */
export async function* generateTexts(
  prompts: readonly (readonly number[])[],
  options: BatchOptions,
): AsyncGenerator<BatchToken, void, undefined> {
  const { engine, model, capacity, maxTokens, sampling, stop } = options;
  const { stopIds } = sampling;
  const longest = Math.max(...prompts.map(({ length }) => length));
  if (longest > capacity) throw new CacheFullError(capacity, longest);
  const texts = prompts.map((prompt) => {
    // The last id is sampled, but takes no slot.
    const limit = Math.min(maxTokens, capacity - prompt.length + 1);
    return {
      limit,
      pieces: engine.pieces(prompt),
      writer: new TextWriter({
        ...{ context: prompt, position: prompt.length },
        ...{ tokenizer: model.tokenizer, stop, stopIds, limit },
      }),
    };
  });
  for (let sequence = 0; sequence < engine.sequences; sequence++) {
    const text = texts[sequence];
    if (text === undefined) engine.stop(sequence);
    else {
      const seed = (sampling.seed + sequence) % 2 ** 53;
      engine.start({ ...sampling, seed }, text.limit, sequence);
    }
  }
  for await (
    const { sequence, ...sampled } of sampleBatch(engine, texts, {
      ...options,
      stopIds,
      ended: (sequence) => texts[sequence]!.writer.end !== undefined,
    })
  ) {
    const { writer } = texts[sequence]!;
    const token = writer.push(sampled);
    yield { sequence, ...token, last: writer.end !== undefined };
  }
  const full = texts.findIndex(({ limit, writer }) =>
    limit < maxTokens && writer.end === "limit"
  );
  if (full < 0) return;
  const length = prompts[full]!.length + texts[full]!.limit;
  throw new CacheFullError(capacity, length);
}
