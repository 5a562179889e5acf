import type { Backend } from "../../src/backends/backend.ts";
import type { EvaluationDocument } from "../../src/evaluate/documents.ts";
import type { EvaluationModel } from "../../src/evaluate/model.ts";
import type { ModelConfig } from "../../src/model/config.ts";
import { randomWeights } from "../../src/model/random_weights.ts";
import { tinyConfig } from "../generate/tiny_model.ts";

/** A random model whose tokens are the low bits of characters. */
export function tinyEvaluation(
  backend: Backend,
  config: ModelConfig = tinyConfig,
): EvaluationModel {
  const weights = randomWeights(backend, config, 7);
  return {
    name: "tiny",
    backend,
    config,
    codec: {
      encode: (text) => Array.from(text, (c) => c.charCodeAt(0) % 64),
      // Digits keep their meaning: their codes are below 64.
      decode: (ids) => String.fromCharCode(...ids),
    },
    eosIds: [],
    renderChat: (messages) =>
      messages.map(({ content }) => `<user>${content}<end>`).join(""),
    weights: () => Promise.resolve(weights),
    [Symbol.dispose]: () => weights[Symbol.dispose](),
  };
}

/** Texts of different lengths, always the same. */
export const tinyDocuments: readonly EvaluationDocument[] = Array.from(
  { length: 12 },
  (_, i) => ({
    source: i % 2 === 0 ? "even" : "odd",
    name: `page ${i}`,
    text: Array.from(
      { length: 20 + i },
      (_, line) => `line ${line} of ${i} says ${(line * 37 + i * 11) % 101}`,
    ).join("\n"),
  }),
);
