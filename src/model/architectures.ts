/**
 * The model classes that can be loaded, and what distinguishes them: biases,
 * head norms and default values, which are those of the transformers 5 config
 * classes. To add one, see "add a model family" in CONTRIBUTING.md.
 *
 * @module
 */

/** A model class that can be loaded. */
export type Architecture =
  | "LlamaForCausalLM"
  | "MistralForCausalLM"
  | "Qwen2ForCausalLM"
  | "Qwen3ForCausalLM";

/** Which attention products have a bias. */
export type AttentionBias = "none" | "qkv" | "qkvo";

/** What distinguishes the architectures. */
export interface Family {
  /** `model_type`, which some files have instead of a class. */
  readonly modelType: string;
  /** Default of `max_position_embeddings`. */
  readonly contextLength: number;
  /** Default of `num_key_value_heads`; as many as query heads if left out. */
  readonly kvHeads?: number;
  /** Default of `head_dim`; hidden size over heads if left out. */
  readonly headDim?: number;
  /** Default of `bos_token_id`. */
  readonly bosId?: number;
  /** Default of `eos_token_id`. */
  readonly eosIds: readonly number[];
  /** Biases of the attention products with and without `attention_bias`. */
  readonly attentionBias: Readonly<
    Record<"on" | "off", AttentionBias>
  >;
  /** Whether `mlp_bias` means anything. */
  readonly mlpBias: boolean;
  /** Whether each query and key head is normed before the rotation. */
  readonly qkNorm: boolean;
  /** When `sliding_window` is in use. */
  readonly window: "never" | "always" | "on request";
}

/** The architectures that one forward pass serves. */
export const families: Readonly<Record<Architecture, Family>> = {
  LlamaForCausalLM: {
    modelType: "llama",
    contextLength: 2048,
    bosId: 1,
    eosIds: [2],
    attentionBias: { on: "qkvo", off: "none" },
    mlpBias: true,
    qkNorm: false,
    window: "never",
  },
  MistralForCausalLM: {
    modelType: "mistral",
    contextLength: 131_072,
    kvHeads: 8,
    bosId: 1,
    eosIds: [2],
    attentionBias: { on: "none", off: "none" },
    mlpBias: false,
    qkNorm: false,
    window: "always",
  },
  Qwen2ForCausalLM: {
    modelType: "qwen2",
    contextLength: 32_768,
    kvHeads: 32,
    eosIds: [],
    attentionBias: { on: "qkv", off: "qkv" },
    mlpBias: false,
    qkNorm: false,
    window: "on request",
  },
  Qwen3ForCausalLM: {
    modelType: "qwen3",
    contextLength: 32_768,
    kvHeads: 32,
    headDim: 128,
    eosIds: [],
    attentionBias: { on: "qkvo", off: "none" },
    mlpBias: false,
    qkNorm: true,
    window: "on request",
  },
};
