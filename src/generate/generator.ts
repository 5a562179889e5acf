/**
 * Text generation in fixed memory.
 *
 * @module
 */
import type { Backend } from "../backends/backend.ts";
import { checkPrecision } from "../backends/check_precision.ts";
import { openBackend } from "../backends/open_backend.ts";
import { resolveBudget } from "../cache/budget.ts";
import type { CacheStats } from "../cache/slot_cache.ts";
import { type BackendUnavailableError, CacheFullError } from "../errors.ts";
import { type ModelFolder, openModelFolder } from "../model/model_folder.ts";
import { loadWeights, type Weights } from "../model/weights.ts";
import type { Policy } from "../policies/parts.ts";
import { stageRows } from "../policies/schedule.ts";
import { steady } from "../policies/steady.ts";
import { validatePolicy } from "../policies/validate_policy.ts";
import type { ChatMessage } from "../tokens/chat_template.ts";
import { checkBatch, generateTexts } from "./batch.ts";
import { Context } from "./context.ts";
import { Engine } from "./engine.ts";
import type {
  BatchToken,
  ChatOptions,
  GeneratedToken,
  GenerateOptions,
  LoadOptions,
  PolicyForModel,
} from "./options.ts";
import { type ResolvedSampling, resolveSampling } from "./sampling.ts";
import { type GeneratorStats, Stopwatch } from "./stats.ts";
import { checkStopStrings } from "./stop_strings.ts";
import { TextWriter } from "./text_writer.ts";
import { sampleTokens } from "./token_loop.ts";

/** What a generator keeps of what it was loaded from. */
interface Parts {
  readonly backend: Backend;
  readonly ownsBackend: boolean;
  readonly skipped: readonly BackendUnavailableError[];
  readonly model: ModelFolder;
  readonly weights: Weights;
  readonly policy: Policy;
  readonly engine: Engine;
  readonly cache: CacheStats;
}

const defaultPolicy: PolicyForModel = ({ headLosses: losses }) =>
  steady({ budget: { ratio: 0.25 }, losses });

/** Options of a generation, checked and filled in. */
interface Resolved extends Pick<ChatOptions, "signal" | "onPrefill"> {
  readonly maxTokens: number;
  readonly sampling: ResolvedSampling;
  readonly stop: readonly string[];
}

/**
 * Generates text with a model in a cache that never grows.
 *
 * @example Stream a text
 * ```ts ignore
 * import { Generator, steady } from "@steadykv/steadykv";
 *
 * await using generator = await Generator.load("examples/models/docs-7m", {
 *   cache: steady({ budget: 256 }),
 * });
 * for await (const { text } of generator.generate("The SELECT statement")) {
 *   await Deno.stdout.write(new TextEncoder().encode(text));
 * }
 * ```
 */
export class Generator implements AsyncDisposable {
  readonly #parts: Parts;
  readonly #context: Context;
  readonly #stopwatch = new Stopwatch();
  #cache: CacheStats;
  #state: "idle" | "running" | "disposed" = "idle";

  private constructor(parts: Parts) {
    this.#parts = parts;
    this.#cache = parts.cache;
    this.#context = new Context(parts.engine);
  }

  /**
   * Loads a model folder onto a backend and allocates the cache.
   *
   * @param folder Path or file URL of a Hugging Face model folder.
   * @throws {ModelFormatError} If a file is missing or damaged.
   * @throws {BackendUnavailableError} If the backend cannot be opened.
   * @throws {TypeError} If the backend cannot store keys and values with the
   * policy's precision, or two parts of the policy do not go together.
   * @throws {RangeError} If the budget does not suit the policy or the model,
   * or `sequences` is not a whole number of at least 1.
   */
  static async load(
    folder: string | URL,
    options: LoadOptions = {},
  ): Promise<Generator> {
    const { cache = defaultPolicy, sequences = 1 } = options;
    if (!Number.isSafeInteger(sequences) || sequences < 1) {
      throw new RangeError(
        `Cannot use sequences ${sequences}: expected a whole number of at least 1`,
      );
    }
    using model = await openModelFolder(folder);
    const policy = typeof cache === "function" ? cache(model) : cache;
    validatePolicy(policy);
    const { config } = model;
    const { backend: wanted = "auto" } = options;
    const ownsBackend = typeof wanted === "string";
    const { backend, skipped } = ownsBackend
      ? await openBackend(wanted, { precision: policy.precision.kind })
      : { backend: wanted, skipped: [] };
    let weights: Weights | undefined;
    let engine: Engine | undefined;
    try {
      // What is wrong should be known before gigabytes of weights are read.
      checkPrecision(policy, backend);
      resolveBudget(policy, {
        ...config,
        sequences,
        stageRows: stageRows(policy),
        halfBytes: backend.halfBytes,
      });
      weights = await loadWeights(backend, model, options);
      engine = new Engine({ backend, config, weights, policy, sequences });
      const cache = await engine.cache.stats();
      return new Generator({
        backend,
        ownsBackend,
        skipped,
        model,
        weights,
        policy,
        engine,
        cache,
      });
    } catch (error) {
      engine?.[Symbol.dispose]();
      weights?.[Symbol.dispose]();
      if (ownsBackend) await backend[Symbol.asyncDispose]();
      throw error;
    }
  }

  /** Why `auto` passed over faster backends; empty if it did not. */
  get skippedBackends(): readonly BackendUnavailableError[] {
    return this.#parts.skipped;
  }

  /**
   * Generates text, token by token. Leaving the loop stops the generation.
   *
   * @param prompt Text, or ids.
   * @throws {RangeError} If the prompt is empty, or longer than the policy's
   * schedule reads at once, or an option is out of range.
   * @throws {CacheFullError} If a cache that does not compress is full.
   * @throws {Error} If another generation of this generator is running.
   */
  generate(
    prompt: string | readonly number[],
    options: GenerateOptions = {},
  ): AsyncGenerator<GeneratedToken, void, undefined> {
    return this.#stream(options, (resolved) => {
      const ids = this.#encode(prompt);
      if (!options.append) this.#context.reset();
      return this.#run(this.#context.append(ids), resolved);
    });
  }

  /** Generates text and returns it whole; see {@linkcode Generator.generate}. */
  async generateText(
    prompt: string | readonly number[],
    options: GenerateOptions = {},
  ): Promise<string> {
    let text = "";
    for await (const token of this.generate(prompt, options)) {
      text += token.text;
    }
    return text;
  }

  /**
   * Answers a conversation with the model's chat template. What the cache
   * holds of it already is not read again.
   *
   * @throws {TypeError} If the model has no chat template or a message is not
   * well formed.
   */
  chat(
    messages: readonly ChatMessage[],
    options: ChatOptions = {},
  ): AsyncGenerator<GeneratedToken, void, undefined> {
    const { chatTemplate, tokenizer } = this.#parts.model;
    return this.#stream(options, (resolved) => {
      const text = chatTemplate.render(messages);
      const ids = tokenizer.encode(text, { addSpecialTokens: false });
      return this.#run(this.#context.continueAs(ids), resolved);
    });
  }

  /**
   * Generates a text for each of several prompts, all together: a step reads
   * the weights once for all of them. Prompts are read one after the other;
   * then the tokens of the texts come in turn, and each text ends by itself.
   * They are those that the prompts would give one by one, with the seed plus
   * the index of the prompt. Two things may make them differ: a backend that
   * adds the sums of a batch up in another order, in the last bits, and RoPE
   * scaling of type `dynamic`, which follows the longest of the texts.
   *
   * Leaving the loop stops all texts. There is no text to append to afterwards.
   *
   * @param prompts Texts, or ids; at most as many as the `sequences` that the
   * generator was loaded with.
   * @throws {RangeError} If there are no prompts or too many, one is empty or
   * longer than the policy's schedule reads at once, or an option is out of
   * range.
   * @throws {CacheFullError} If a cache that does not compress has no room for
   * a prompt, or had none for the rest of a text; all others have ended then.
   * @throws {Error} If another generation of this generator is running.
   */
  generateBatch(
    prompts: readonly (string | readonly number[])[],
    options: ChatOptions = {},
  ): AsyncGenerator<BatchToken, void, undefined> {
    return this.#stream(options, (resolved) => {
      const { engine, model, backend: { stepsPerRead } } = this.#parts;
      checkBatch(prompts.length, engine.sequences);
      const feeds = prompts.map((prompt) => this.#encode(prompt));
      this.#stopwatch.prompt(feeds.reduce((sum, f) => sum + f.length, 0), 0);
      this.#context.reset();
      this.#context.begin();
      const capacity = this.#capacity();
      return generateTexts(feeds, {
        ...resolved,
        ...{ engine, model, capacity, stepsPerRead },
      });
    });
  }

  /** Empties the cache: the next text starts anew. */
  reset(): void {
    this.#checkIdle("reset");
    this.#context.reset();
  }

  /** Statistics of the last generation and of the memory it ran in. */
  stats(): GeneratorStats {
    const { backend, policy, weights, engine } = this.#parts;
    return {
      backend: backend.name,
      device: backend.description,
      policy: policy.name,
      sequences: engine.sequences,
      ...this.#stopwatch.stats(),
      contextTokens: engine.contextTokens,
      weightBytes: weights.byteLength,
      workingBytes: engine.workingBytes,
      deviceBytes: backend.bytesAllocated,
      cache: this.#cache,
    };
  }

  /** Frees the device memory, and the backend if {@linkcode load} opened it. */
  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#state === "disposed") return;
    this.#state = "disposed";
    const { backend, ownsBackend, weights, engine } = this.#parts;
    engine[Symbol.dispose]();
    weights[Symbol.dispose]();
    if (ownsBackend) await backend[Symbol.asyncDispose]();
  }

  #checkIdle(action: string): void {
    if (this.#state === "idle") return;
    throw new Error(
      this.#state === "disposed"
        ? `Cannot ${action}: the generator was disposed`
        : `Cannot ${action}: a generation is running: finish it, leave its loop, or load a second generator`,
    );
  }

  #encode(prompt: string | readonly number[]): readonly number[] {
    const { tokenizer, config } = this.#parts.model;
    const ids = typeof prompt === "string" ? tokenizer.encode(prompt) : prompt;
    if (ids.length === 0) {
      throw new RangeError(
        "Cannot generate from an empty prompt: expected at least one token",
      );
    }
    const { vocabulary } = config.sizes;
    const bad = ids.find((id) =>
      !Number.isSafeInteger(id) || id < 0 || id >= vocabulary
    );
    if (bad === undefined) return ids;
    throw new RangeError(
      `Cannot use prompt id ${bad}: expected whole numbers from 0 to ${
        vocabulary - 1
      }`,
    );
  }

  /** Tokens that a text has room for. */
  #capacity(): number {
    const { policy, engine } = this.#parts;
    return policy.merge.kind === "never" ? engine.cache.capacity : Infinity;
  }

  /** Checks options, then streams what `start` gives, and counts it. */
  async *#stream<T>(
    options: ChatOptions,
    start: (resolved: Resolved) => AsyncGenerator<T, void, undefined>,
  ): AsyncGenerator<T, void, undefined> {
    this.#checkIdle("generate");
    const { model, engine } = this.#parts;
    const { maxTokens = 256, stop = [], signal, onPrefill } = options;
    if (!Number.isSafeInteger(maxTokens) || maxTokens < 1) {
      throw new RangeError(
        `Cannot use maxTokens ${maxTokens}: expected a whole number of at least 1`,
      );
    }
    const sampling = resolveSampling(options, {
      defaults: model.generation,
      stopIds: options.stopIds ?? model.eosIds,
      vocabulary: model.config.sizes.vocabulary,
    });
    checkStopStrings(stop);
    signal?.throwIfAborted();
    this.#state = "running";
    try {
      this.#stopwatch.start();
      const tokens = start({
        ...{ maxTokens, sampling, stop },
        ...(signal && { signal }),
        ...(onPrefill && { onPrefill }),
      });
      for await (const token of tokens) {
        this.#checkRunning();
        this.#stopwatch.token();
        yield token;
        this.#checkRunning();
      }
    } finally {
      if (this.#state === "running") {
        this.#state = "idle";
        this.#cache = await engine.cache.stats();
      }
    }
  }

  /** Reads `feed` and generates the one text that follows. */
  async *#run(
    feed: readonly number[],
    { maxTokens, sampling, stop, signal, onPrefill }: Resolved,
  ): AsyncGenerator<GeneratedToken, void, undefined> {
    const { engine, model, backend: { stepsPerRead } } = this.#parts;
    this.#stopwatch.prompt(feed.length, engine.position());
    const length = engine.position() + feed.length;
    const capacity = this.#capacity();
    if (length > capacity) throw new CacheFullError(capacity, length);
    const pieces = engine.pieces(feed);
    // The last id is sampled, but takes no slot.
    const limit = Math.min(maxTokens, capacity - length + 1);
    engine.start(sampling, limit);
    for (let other = 1; other < engine.sequences; other++) engine.stop(other);
    this.#context.begin();
    const { stopIds } = sampling;
    const writer = new TextWriter({
      ...{ context: feed, position: length },
      ...{ tokenizer: model.tokenizer, stop, stopIds, limit },
    });
    const loop = { stepsPerRead, limit, stopIds, signal, onPrefill };
    for await (const sampled of sampleTokens(engine, pieces, loop)) {
      const token = writer.push(sampled);
      if (writer.end !== "stopId") this.#context.push(token.id);
      if (writer.end === "stopId" || writer.end === "limit") {
        this.#context.end();
      }
      yield token;
      if (writer.end !== undefined && writer.end !== "limit") return;
    }
    if (limit < maxTokens) throw new CacheFullError(capacity, length + limit);
  }

  #checkRunning(): void {
    if (this.#state === "disposed") this.#checkIdle("go on generating");
  }
}
