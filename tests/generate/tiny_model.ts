import type { ModelConfig } from "../../src/model/config.ts";

/** A model that is small enough to generate many tokens in a test. */
export const tinyConfig: ModelConfig = {
  architecture: "LlamaForCausalLM",
  sizes: {
    hidden: 32,
    heads: 4,
    kvHeads: 2,
    headDim: 16,
    ffn: 48,
    vocabulary: 64,
    normEpsilon: 1e-5,
  },
  layers: 2,
  contextLength: 4096,
  tiedHead: true,
  attentionBias: "none",
  mlpBias: false,
  qkNorm: false,
  rope: { type: "default", theta: 10_000 },
  eosIds: [],
};
