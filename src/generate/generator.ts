/**
 * Text generation in fixed memory.
 *
 * @module
 */
import type { Backend } from "../backends/backend.ts";
import { openBackend } from "../backends/open_backend.ts";
import { resolveBudget } from "../cache/budget.ts";
import type { CacheStats } from "../cache/slot_cache.ts";
import { type BackendUnavailableError, CacheFullError } from "../errors.ts";
import { type ModelFolder, openModelFolder } from "../model/model_folder.ts";
import { loadWeights, type Weights } from "../model/weights.ts";
import { keepKV } from "../policies/keep_kv.ts";
import type { Policy } from "../policies/parts.ts";
import { stageRows } from "../policies/schedule.ts";
import { validatePolicy } from "../policies/validate_policy.ts";
import type { ChatMessage } from "../tokens/chat_template.ts";
import { TextStream } from "../tokens/text_stream.ts";
import { Context } from "./context.ts";
import { Engine } from "./engine.ts";
import type {
  ChatOptions,
  GeneratedToken,
  GenerateOptions,
  LoadOptions,
} from "./options.ts";
import { type ResolvedSampling, resolveSampling } from "./sampling.ts";
import { type GeneratorStats, Stopwatch } from "./stats.ts";
import { StopStrings } from "./stop_strings.ts";
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

/**
 * Generates text with a model in a cache that never grows.
 *
 * @example Stream a text
 * ```ts ignore
 * import { Generator, keepKV } from "@steadykv/steadykv";
 *
 * await using generator = await Generator.load("examples/models/docs-7m", {
 *   cache: keepKV({ budget: 256 }),
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
   * @throws {RangeError} If the budget does not suit the policy or the model.
   */
  static async load(
    folder: string | URL,
    options: LoadOptions = {},
  ): Promise<Generator> {
    const { cache = keepKV({ budget: { ratio: 0.25 } }) } = options;
    using model = await openModelFolder(folder);
    const policy = typeof cache === "function" ? cache(model) : cache;
    validatePolicy(policy);
    const { config } = model;
    const { backend: wanted = "auto" } = options;
    const ownsBackend = typeof wanted === "string";
    const { backend, skipped } = ownsBackend
      ? await openBackend(wanted)
      : { backend: wanted, skipped: [] };
    let weights: Weights | undefined;
    let engine: Engine | undefined;
    try {
      // A bad budget should be known before gigabytes of weights are read.
      resolveBudget(policy, {
        ...config,
        sequences: 1,
        stageRows: stageRows(policy),
        halfBytes: backend.halfBytes,
      });
      weights = await loadWeights(backend, model, options);
      engine = new Engine({ backend, config, weights, policy });
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
    return this.#stream(options, () => {
      const ids = this.#encode(prompt);
      if (!options.append) this.#context.reset();
      return this.#context.append(ids);
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
    return this.#stream(options, () => {
      const text = chatTemplate.render(messages);
      const ids = tokenizer.encode(text, { addSpecialTokens: false });
      return this.#context.continueAs(ids);
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
      ...this.#stopwatch.stats(),
      contextTokens: engine.position(),
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

  /** Checks options, then runs what `prepare` says must be read. */
  async *#stream(
    options: ChatOptions,
    prepare: () => readonly number[],
  ): AsyncGenerator<GeneratedToken, void, undefined> {
    this.#checkIdle("generate");
    const { model, engine } = this.#parts;
    const { maxTokens = 256 } = options;
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
    const stops = new StopStrings(options.stop ?? []);
    options.signal?.throwIfAborted();
    this.#state = "running";
    try {
      this.#stopwatch.start();
      const feed = prepare();
      this.#stopwatch.prompt(feed.length, engine.position());
      yield* this.#run(feed, { ...options, maxTokens, sampling, stops });
    } finally {
      if (this.#state === "running") {
        this.#state = "idle";
        this.#cache = await engine.cache.stats();
      }
    }
  }

  async *#run(
    feed: readonly number[],
    { maxTokens, sampling, stops, signal, onPrefill }: ChatOptions & {
      maxTokens: number;
      sampling: ResolvedSampling;
      stops: StopStrings;
    },
  ): AsyncGenerator<GeneratedToken, void, undefined> {
    const { engine, policy, model, backend } = this.#parts;
    const length = engine.position() + feed.length;
    const capacity = policy.merge.kind === "never"
      ? engine.cache.capacity
      : Infinity;
    if (length > capacity) throw new CacheFullError(capacity, length);
    const pieces = engine.pieces(feed);
    // The last id is sampled, but takes no slot.
    const limit = Math.min(maxTokens, capacity - length + 1);
    engine.start(sampling, limit);
    this.#context.begin();
    const { stopIds } = sampling;
    const text = new TextStream(model.tokenizer, { context: feed });
    let generated = 0;
    for await (
      const { id, logprob } of sampleTokens(engine, pieces, {
        stepsPerRead: backend.stepsPerRead,
        limit,
        stopIds,
        signal,
        onPrefill,
      })
    ) {
      this.#checkRunning();
      this.#stopwatch.token();
      const stop = stopIds.includes(id);
      const last = stop || ++generated === limit;
      if (!stop) this.#context.push(id);
      if (last) this.#context.end();
      const piece = stop ? "" : text.push(id);
      const shown = stops.push(last ? piece + text.flush() : piece);
      const rest = last && !shown.stopped ? stops.flush() : "";
      const position = length + generated - (stop ? 0 : 1);
      yield { id, text: shown.text + rest, logprob, position };
      this.#checkRunning();
      if (shown.stopped || stop) return;
    }
    if (limit < maxTokens) throw new CacheFullError(capacity, length + limit);
  }

  #checkRunning(): void {
    if (this.#state === "disposed") this.#checkIdle("go on generating");
  }
}
