/**
 * `generation_config.json` of a Hugging Face model folder: how the makers of a
 * model suggest that it is sampled.
 *
 * @module
 */
import * as v from "valibot";
import { checkSchema, integer, numberAbove, parseJson } from "./json.ts";

/** Suggested sampling options; a field that the file lacks is left out. */
export interface GenerationConfig {
  /** Ids that end a text; they replace those of `config.json`. */
  readonly eosIds?: readonly number[];
  /** Whether to sample at all; otherwise the most likely id is taken. */
  readonly doSample?: boolean;
  /** Divisor of the logits. */
  readonly temperature?: number;
  /** Number of most likely ids kept; 0 keeps all. */
  readonly topK?: number;
  /** Probability mass kept, in `(0, 1]`; 1 keeps all. */
  readonly topP?: number;
  /** Ids less likely than this share of the likeliest go; 0 keeps all. */
  readonly minP?: number;
  /** Divisor for the positive logits of ids seen before; 1 changes nothing. */
  readonly repetitionPenalty?: number;
}

const id = integer(0, 2 ** 31 - 1);
const share = "a number from 0 to 1";

const Generation = v.object({
  eos_token_id: v.nullish(
    v.union([id, v.array(id)], "an id or a list of ids"),
  ),
  do_sample: v.nullish(v.boolean("true or false")),
  temperature: v.nullish(
    v.pipe(
      v.number("a number, at least 0"),
      v.minValue(0, "a number, at least 0"),
    ),
  ),
  top_k: v.nullish(integer(0, 2 ** 31 - 1)),
  top_p: v.nullish(
    v.pipe(numberAbove(0), v.maxValue(1, "a number up to 1")),
  ),
  min_p: v.nullish(
    v.pipe(v.number(share), v.minValue(0, share), v.maxValue(1, share)),
  ),
  repetition_penalty: v.nullish(numberAbove(0)),
}, "an object");

/**
 * Reads the text of a `generation_config.json`.
 *
 * @param file Name of the file for error messages.
 * @throws {ModelFormatError} If a field has an impossible value.
 */
export function parseGenerationConfig(
  text: string,
  file: string,
): GenerationConfig {
  const fields = checkSchema(Generation, parseJson(text, file), file);
  const found = {
    eosIds: fields.eos_token_id === null || fields.eos_token_id === undefined
      ? undefined
      : [fields.eos_token_id].flat(),
    doSample: fields.do_sample,
    temperature: fields.temperature,
    topK: fields.top_k,
    topP: fields.top_p,
    minP: fields.min_p,
    repetitionPenalty: fields.repetition_penalty,
  };
  // Transformers writes null for "not set".
  return Object.fromEntries(
    Object.entries(found).filter(([_, value]) => (value ?? null) !== null),
  );
}
