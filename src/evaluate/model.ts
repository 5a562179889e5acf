/**
 * The model that is evaluated: loaded once, run under many policies.
 *
 * @module
 */
import { basename, fromFileUrl } from "@std/path";
import type { Backend } from "../backends/backend.ts";
import { Engine } from "../generate/engine.ts";
import type { ModelConfig } from "../model/config.ts";
import { type ModelFolder, openModelFolder } from "../model/model_folder.ts";
import {
  type LoadProgress,
  loadWeights,
  type Weights,
} from "../model/weights.ts";
import type { Policy } from "../policies/parts.ts";
import type { ChatMessage } from "../tokens/chat_template.ts";

/** Text to ids and back. */
export interface TextCodec {
  /** The ids of a text. */
  encode(text: string, options: { addSpecialTokens: boolean }): number[];
  /** The text of ids. */
  decode(ids: readonly number[]): string;
}

/** A model on a backend. Disposing frees the weights, not the backend. */
export interface EvaluationModel extends Disposable {
  /** What reports call it. */
  readonly name: string;
  /** Path of its folder, where it has one. */
  readonly folder?: string;
  /** The backend; the caller disposes it. */
  readonly backend: Backend;
  /** Sizes of the model. */
  readonly config: ModelConfig;
  /** Its tokenizer. */
  readonly codec: TextCodec;
  /** Ids that end a text. */
  readonly eosIds: readonly number[];
  /**
   * The text of a chat.
   *
   * @throws {TypeError} If the model has no chat template.
   */
  renderChat(messages: readonly ChatMessage[]): string;
  /** The weights; loaded by the first call. */
  weights(): Promise<Weights>;
}

/** Options of {@linkcode openEvaluationModel}. */
export interface OpenModelOptions {
  /** Where the model runs; the caller disposes it. */
  readonly backend: Backend;
  /** Told how far loading is. */
  readonly onProgress?: (progress: LoadProgress) => void;
  /** Stops loading with the signal's reason. */
  readonly signal?: AbortSignal | undefined;
}

/**
 * Opens a model folder. The weights are loaded when they are first needed, so
 * that an evaluation with nothing left to do does not load them.
 *
 * @throws {ModelFormatError} If a file is missing or damaged.
 */
export async function openEvaluationModel(
  folder: string | URL,
  { backend, onProgress, signal }: OpenModelOptions,
): Promise<EvaluationModel> {
  const model: ModelFolder = await openModelFolder(folder);
  let weights: Promise<Weights> | undefined;
  let loaded: Weights | undefined;
  const load = async () => {
    loaded = await loadWeights(backend, model, { onProgress, signal });
    return loaded;
  };
  const path = folder instanceof URL ? fromFileUrl(folder) : folder;
  return {
    name: basename(path),
    folder: path,
    backend,
    config: model.config,
    codec: model.tokenizer,
    eosIds: model.eosIds,
    renderChat: (messages) => model.chatTemplate.render(messages),
    weights: () => weights ??= load(),
    [Symbol.dispose](): void {
      loaded?.[Symbol.dispose]();
      model[Symbol.dispose]();
    },
  };
}

/** An empty engine that runs the model under a policy. */
export async function openEngine(
  model: EvaluationModel,
  policy: Policy,
  { backend = model.backend, sequences = 1 }: {
    backend?: Backend;
    sequences?: number;
  } = {},
): Promise<Engine> {
  const weights = await model.weights();
  const { config } = model;
  return new Engine({ backend, config, weights, policy, sequences });
}

/** Sampling options of greedy decoding. */
export const GREEDY = {
  temperature: 0,
  topK: 0,
  topP: 1,
  minP: 0,
  repetitionPenalty: 1,
  seed: 0,
  stopIds: [],
} as const;
