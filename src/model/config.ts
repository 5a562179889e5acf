/**
 * `config.json` of a Hugging Face model folder.
 *
 * @module
 */
import * as v from "valibot";
import type { ModelSizes } from "../backends/backend.ts";
import { ModelFormatError } from "../errors.ts";
import {
  type Architecture,
  type AttentionBias,
  families,
  type Family,
} from "./architectures.ts";
import { checkSchema, integer, numberAbove, parseJson, show } from "./json.ts";
import { parseRope, type RopeConfig } from "./rope_config.ts";

/** What a model is made of. */
export interface ModelConfig {
  /** The model class. */
  readonly architecture: Architecture;
  /** Sizes that kernels are specialised for. */
  readonly sizes: ModelSizes;
  /** Number of layers. */
  readonly layers: number;
  /** Tokens the model was made for (`max_position_embeddings`). */
  readonly contextLength: number;
  /** Whether the output embedding is the input embedding. */
  readonly tiedHead: boolean;
  /** Which attention products have a bias. */
  readonly attentionBias: AttentionBias;
  /** Whether the feed-forward products have biases. */
  readonly mlpBias: boolean;
  /** Whether each query and key head is normed before the rotation. */
  readonly qkNorm: boolean;
  /** Rotary position embedding. */
  readonly rope: RopeConfig;
  /** Id that starts a text, where the model has one. */
  readonly bosId?: number;
  /** Ids that end a text. */
  readonly eosIds: readonly number[];
}

const names = v.nullish(
  v.array(v.string("a name"), "a list of names"),
);

const Identity = v.object({
  architectures: names,
  model_type: v.nullish(v.string("a name")),
}, "an object");

const size = integer(1, 2 ** 24);
const flag = v.nullish(v.boolean("true or false"));
const id = integer(0, 2 ** 31 - 1);
const parameters = v.nullish(
  v.record(v.string(), v.unknown(), "an object"),
);
const type = v.nullish(
  v.picklist(
    ["bfloat16", "float16", "float32"],
    "one of bfloat16, float16, float32",
  ),
);

const Config = v.object({
  vocab_size: size,
  hidden_size: size,
  intermediate_size: size,
  num_hidden_layers: integer(1, 4096),
  num_attention_heads: integer(1, 65_536),
  num_key_value_heads: v.nullish(integer(1, 65_536)),
  head_dim: v.nullish(integer(2, 4096)),
  hidden_act: v.nullish(v.literal("silu", '"silu"')),
  max_position_embeddings: v.nullish(integer(1, 2 ** 31 - 1)),
  rms_norm_eps: v.nullish(numberAbove(0)),
  tie_word_embeddings: flag,
  attention_bias: flag,
  mlp_bias: flag,
  use_sliding_window: flag,
  sliding_window: v.nullish(size),
  max_window_layers: v.nullish(integer(0, 4096)),
  layer_types: names,
  bos_token_id: v.nullish(id),
  eos_token_id: v.nullish(
    v.union([id, v.array(id)], "an id or a list of ids"),
  ),
  torch_dtype: type,
  dtype: type,
  quantization_config: v.nullish(v.never("full-precision weights")),
  rope_parameters: parameters,
  rope_scaling: parameters,
  rope_theta: v.nullish(numberAbove(1)),
  partial_rotary_factor: v.nullish(v.number("a number")),
  original_max_position_embeddings: v.nullish(integer(1, 2 ** 31 - 1)),
});

/**
 * Reads the text of a `config.json`. Both forms are understood, the old one
 * (`rope_theta`, `rope_scaling`, `torch_dtype`) and the new one
 * (`rope_parameters`, `dtype`).
 *
 * @param file Name of the file for error messages.
 * @throws {ModelFormatError} If a field is missing or has a value that cannot
 * be served.
 */
export function parseModelConfig(text: string, file: string): ModelConfig {
  const json = parseJson(text, file);
  const architecture = findArchitecture(json, file);
  const family = families[architecture];
  const config = checkSchema(Config, json, file);

  const heads = config.num_attention_heads;
  const hidden = config.hidden_size;
  const given = config.num_key_value_heads;
  const kvHeads = given === undefined
    ? family.kvHeads ?? heads
    : given ?? heads;
  if (heads % kvHeads !== 0) {
    throw new ModelFormatError(
      file,
      `num_key_value_heads is ${kvHeads}, expected a divisor of num_attention_heads, which is ${heads}`,
    );
  }
  const headDim = config.head_dim ?? family.headDim ??
    Math.floor(hidden / heads);
  if (headDim < 2 || headDim % 2 !== 0) {
    throw new ModelFormatError(
      file,
      `head_dim is ${headDim}, expected an even number, at least 2`,
    );
  }
  const contextLength = config.max_position_embeddings ?? family.contextLength;
  checkWindow(config, { family, contextLength, file });
  const rope = parseRope(config, { file, contextLength });
  if (rope.type === "dynamic" && headDim < 4) {
    throw new ModelFormatError(
      file,
      `head_dim is ${headDim}, expected at least 4 for rope type dynamic`,
    );
  }

  const vocabulary = config.vocab_size;
  const eos = config.eos_token_id;
  // An explicit null says that there is none.
  const eosIds = eos === undefined
    ? family.eosIds
    : eos === null
    ? []
    : [eos].flat();
  const bos = config.bos_token_id;
  const bosId = bos === undefined ? family.bosId : bos ?? undefined;
  return {
    architecture,
    sizes: {
      hidden,
      heads,
      kvHeads,
      headDim,
      ffn: config.intermediate_size,
      vocabulary,
      normEpsilon: config.rms_norm_eps ?? 1e-6,
    },
    layers: config.num_hidden_layers,
    contextLength,
    tiedHead: config.tie_word_embeddings ?? false,
    attentionBias: family.attentionBias[config.attention_bias ? "on" : "off"],
    mlpBias: family.mlpBias && (config.mlp_bias ?? false),
    qkNorm: family.qkNorm,
    rope,
    // Ids that the model cannot produce, such as the class defaults of a model
    // with a tiny vocabulary, say nothing.
    ...(bosId !== undefined && bosId < vocabulary && { bosId }),
    eosIds: eosIds.filter((id) => id < vocabulary),
  };
}

/** The architecture that the file names, or that its model type implies. */
function findArchitecture(json: unknown, file: string): Architecture {
  const identity = checkSchema(Identity, json, file);
  const known = Object.keys(families) as Architecture[];
  const given = identity.architectures?.[0];
  const [field, found, choices] = given !== undefined
    ? ["architectures", given, known]
    : [
      "model_type",
      identity.model_type,
      known.map((name) => families[name].modelType),
    ];
  const architecture = known[choices.indexOf(found ?? "")];
  if (architecture !== undefined) return architecture;
  throw new ModelFormatError(
    file,
    `${field} is ${show(found)}, expected one of ${choices.join(", ")}`,
  );
}

/** Rejects attention windows that hide part of the context. */
function checkWindow(
  config: v.InferOutput<typeof Config>,
  { family, contextLength, file }: {
    family: Family;
    contextLength: number;
    file: string;
  },
): void {
  const known = ["full_attention", "sliding_attention"];
  const other = config.layer_types?.find((type) => !known.includes(type));
  if (other !== undefined) {
    throw new ModelFormatError(
      file,
      `layer_types has ${show(other)}, expected ${known.join(" or ")}`,
    );
  }
  const requested = config.layer_types
    ? config.layer_types.includes("sliding_attention")
    : family.window === "on request" && config.use_sliding_window === true &&
      (config.max_window_layers ?? 28) < config.num_hidden_layers;
  if (family.window !== "always" && !requested) return;
  const window = config.sliding_window === undefined
    ? 4096
    : config.sliding_window;
  if (window !== null && window < contextLength) {
    throw new ModelFormatError(
      file,
      `sliding_window is ${window}, expected null or at least max_position_embeddings, which is ${contextLength}`,
    );
  }
}
