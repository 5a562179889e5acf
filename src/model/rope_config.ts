/**
 * The rotary position embedding part of `config.json`, in its old form
 * (`rope_theta` beside `rope_scaling`) and its new one (`rope_parameters`).
 *
 * @module
 */
import * as v from "valibot";
import { ModelFormatError } from "../errors.ts";
import { checkSchema, integer, numberAbove, show } from "./json.ts";

/** How positions become angles; see {@linkcode inverseFrequencies}. */
export type RopeConfig =
  /** The original: `theta^(-2i/headDim)`. */
  | { readonly type: "default"; readonly theta: number }
  /** All frequencies divided by `factor`. */
  | {
    readonly type: "linear";
    readonly theta: number;
    readonly factor: number;
  }
  /** `theta` grows with the length of a text beyond the context. */
  | {
    readonly type: "dynamic";
    readonly theta: number;
    readonly factor: number;
    /** Tokens up to which `theta` is as given. */
    readonly contextLength: number;
  }
  /** Low frequencies divided by `factor`, high ones kept (Llama 3.1). */
  | {
    readonly type: "llama3";
    readonly theta: number;
    readonly factor: number;
    readonly lowFrequencyFactor: number;
    readonly highFrequencyFactor: number;
    /** Context of the first training. */
    readonly originalContextLength: number;
  }
  /** The same with a linear ramp over dimensions (YaRN, arXiv 2309.00071). */
  | {
    readonly type: "yarn";
    readonly theta: number;
    readonly factor: number;
    /** Turns within the original context above which a pair is kept. */
    readonly betaFast: number;
    /** Turns within the original context below which it is divided. */
    readonly betaSlow: number;
    /** Whether the ends of the ramp are rounded to whole dimensions. */
    readonly truncate: boolean;
    /** What cosine and sine are multiplied with. */
    readonly attentionFactor: number;
    /** Context of the first training. */
    readonly originalContextLength: number;
  };

/** The fields of `config.json` that {@linkcode parseRope} reads. */
export interface RopeFields {
  /** New form. */
  readonly rope_parameters?:
    | Readonly<Record<string, unknown>>
    | null
    | undefined;
  /** Old form. */
  readonly rope_scaling?: Readonly<Record<string, unknown>> | null | undefined;
  /** Old form, beside `rope_scaling`. */
  readonly rope_theta?: number | null | undefined;
  /** Share of each head that is rotated; only 1 is supported. */
  readonly partial_rotary_factor?: number | null | undefined;
  /** Context of the first training, where it is not among the parameters. */
  readonly original_max_position_embeddings?: number | null | undefined;
}

const positive = numberAbove(0);
const length = integer(1, 2 ** 31 - 1);

/** Everything a rope type may need; which of it is required depends on it. */
const Parameters = v.object({
  // Cosines turn with theta^(-2i/headDim), and YaRN divides by its logarithm.
  rope_theta: v.nullish(numberAbove(1)),
  factor: v.nullish(positive),
  low_freq_factor: v.nullish(positive),
  high_freq_factor: v.nullish(positive),
  original_max_position_embeddings: v.nullish(length),
  attention_factor: v.nullish(positive),
  mscale: v.nullish(v.number("a number")),
  mscale_all_dim: v.nullish(v.number("a number")),
  beta_fast: v.nullish(positive),
  beta_slow: v.nullish(positive),
  truncate: v.nullish(v.boolean("true or false")),
  partial_rotary_factor: v.nullish(v.number("a number")),
});

const types = ["default", "linear", "dynamic", "llama3", "yarn"] as const;

/**
 * Reads the rotary position embedding of a model as transformers 5 does:
 * `rope_scaling` goes before `rope_parameters`, `type` means `rope_type`, and
 * `theta` is 10000 unless told otherwise.
 *
 * @throws {ModelFormatError} Naming `file` and the field at fault.
 */
export function parseRope(
  fields: RopeFields,
  { file, contextLength }: { file: string; contextLength: number },
): RopeConfig {
  const name = fields.rope_scaling ? "rope_scaling" : "rope_parameters";
  const raw = fields.rope_scaling ?? fields.rope_parameters ?? {};
  const found = raw["rope_type"] ?? raw["type"] ?? "default";
  const type = types.find((type) => type === found);
  if (type === undefined) {
    throw new ModelFormatError(
      file,
      `${name}.rope_type is ${show(found)}, expected one of ${
        types.join(", ")
      }`,
    );
  }
  for (const [key, value] of Object.entries(raw)) {
    if (typeof value !== "object" || value === null) continue;
    throw new ModelFormatError(
      file,
      `${name}.${key} is ${
        show(value)
      }, expected one set of parameters for all layers`,
    );
  }
  const parameters = checkSchema(
    v.object({ [name]: Parameters }),
    { [name]: raw },
    file,
  )[name]!;
  const partial = parameters.partial_rotary_factor ??
    fields.partial_rotary_factor ?? 1;
  if (partial !== 1) {
    throw new ModelFormatError(
      file,
      `partial_rotary_factor is ${partial}, expected 1`,
    );
  }
  const required = (
    key: "factor" | "low_freq_factor" | "high_freq_factor",
  ): number => {
    const value = parameters[key];
    if (value !== undefined && value !== null) return value;
    throw new ModelFormatError(
      file,
      `${name}.${key} is missing, expected a number for rope type ${type}`,
    );
  };

  const theta = parameters.rope_theta ?? fields.rope_theta ?? 10_000;
  const originalContextLength = fields.original_max_position_embeddings ??
    parameters.original_max_position_embeddings ?? contextLength;
  switch (type) {
    case "default":
      return { type, theta };
    case "linear":
      return { type, theta, factor: required("factor") };
    case "dynamic":
      return { type, theta, factor: required("factor"), contextLength };
    case "llama3": {
      const lowFrequencyFactor = required("low_freq_factor");
      const highFrequencyFactor = required("high_freq_factor");
      if (highFrequencyFactor <= lowFrequencyFactor) {
        throw new ModelFormatError(
          file,
          `${name}.high_freq_factor is ${highFrequencyFactor}, expected more than low_freq_factor, which is ${lowFrequencyFactor}`,
        );
      }
      return {
        type,
        theta,
        factor: required("factor"),
        lowFrequencyFactor,
        highFrequencyFactor,
        originalContextLength,
      };
    }
    case "yarn": {
      const factor = parameters.factor ??
        contextLength / originalContextLength;
      const { mscale, mscale_all_dim: mscaleAll } = parameters;
      return {
        type,
        theta,
        factor,
        betaFast: parameters.beta_fast ?? 32,
        betaSlow: parameters.beta_slow ?? 1,
        truncate: parameters.truncate ?? true,
        attentionFactor: parameters.attention_factor ??
          (mscale && mscaleAll
            ? magnitude(factor, mscale) / magnitude(factor, mscaleAll)
            : magnitude(factor, 1)),
        originalContextLength,
      };
    }
  }
}

/** YaRN's factor for cosine and sine, section 3.4: `0.1 · m · ln(s) + 1`. */
function magnitude(scale: number, multiplier: number): number {
  return scale <= 1 ? 1 : 0.1 * multiplier * Math.log(scale) + 1;
}
