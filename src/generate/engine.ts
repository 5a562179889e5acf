/**
 * A model, a cache and the recorded programs that run them.
 *
 * The engine deals in ids and device buffers. It enqueues work and reads
 * results; text, stop strings and pacing belong to the generator.
 *
 * @module
 */
import {
  type Backend,
  ChunkWord,
  type DeviceBuffer,
  type Kernels,
  OutputWord,
  type Program,
  SamplingWord,
  StateWord,
  type Step,
} from "../backends/backend.ts";
import { SlotCache } from "../cache/slot_cache.ts";
import type { ModelConfig } from "../model/config.ts";
import { type Activations, forward } from "../model/forward.ts";
import {
  inverseFrequencies,
  MAX_POSITION,
  ropeLength,
  ropeTable,
} from "../model/rope.ts";
import type { Weights } from "../model/weights.ts";
import type { Policy } from "../policies/parts.ts";
import { validatePolicy } from "../policies/validate_policy.ts";
import type { ResolvedSampling } from "./sampling.ts";

/** What an engine is made of. */
export interface EngineOptions {
  readonly backend: Backend;
  readonly config: ModelConfig;
  /** The weights; the caller keeps and disposes them. */
  readonly weights: Weights;
  readonly policy: Policy;
  /** Sequences that are decoded together (default 1). */
  readonly sequences?: number;
}

/** One sampled token. */
export interface SampledId {
  readonly id: number;
  /** Natural-log probability before temperature and filters. */
  readonly logprob: number;
}

/** Entries of the output ring per sequence. */
const RING = 64;

/** Runs a model on a backend. */
export class Engine implements Disposable {
  /** The cache. */
  readonly cache: SlotCache;
  /** Tokens in the cache of each sequence, as far as the host knows. */
  readonly #positions: number[];
  readonly #options: Required<EngineOptions>;
  /** Length of text that the rope table was made for. */
  #ropeLength = NaN;
  readonly #buffers: DeviceBuffer[] = [];
  readonly #programs = new Map<string, Program>();
  readonly #activations: Activations;
  readonly #ropeBuffer: DeviceBuffer;
  readonly #state: DeviceBuffer;
  readonly #chunk: DeviceBuffer;
  readonly #prompt: DeviceBuffer;
  readonly #tokens: DeviceBuffer;
  readonly #seen: DeviceBuffer;
  readonly #sampling: DeviceBuffer;
  readonly #output: DeviceBuffer;
  readonly #logits: DeviceBuffer;
  #allLogits: DeviceBuffer | undefined;

  /**
   * Allocates everything that a generation needs.
   *
   * @throws {RangeError} If the policy or its budget does not suit the model.
   */
  constructor(options: EngineOptions) {
    const { backend, config, policy, sequences = 1 } = options;
    validatePolicy(policy);
    this.#options = { ...options, sequences };
    this.#positions = Array.from({ length: sequences }, () => 0);
    const { sizes } = config;
    const { chunk } = policy.schedule;
    const rows = Math.max(chunk, sequences);
    const head = sizes.heads * sizes.headDim;
    this.cache = new SlotCache(backend, policy, {
      sizes,
      layers: config.layers,
      contextLength: config.contextLength,
      sequences,
      stageRows: chunk,
    });
    const words = Math.ceil(sizes.vocabulary / 32);
    try {
      const f32 = (label: string, length: number) =>
        this.#allocate(label, "f32", length);
      const u32 = (label: string, length: number) =>
        this.#allocate(label, "u32", length);
      this.#activations = {
        hidden: f32("hidden", rows * sizes.hidden),
        queries: f32("queries", rows * head),
        ...(policy.select.sinkPositions === "cache" && {
          sinkQueries: f32("sink queries", rows * head),
        }),
        attention: f32("attention", rows * head),
        logSums: f32("log sums", rows * sizes.heads),
        ffn: f32("ffn", rows * sizes.ffn),
      };
      this.#ropeBuffer = f32("rope", 3 * 256 * sizes.headDim);
      this.#state = u32("state", sequences * StateWord.count);
      this.#chunk = u32("chunk", ChunkWord.count);
      this.#prompt = u32("prompt ids", chunk);
      this.#tokens = u32("ids", sequences);
      this.#seen = u32("ids seen", sequences * words);
      this.#sampling = u32("sampling", sequences * SamplingWord.count);
      this.#output = u32("output", sequences * RING * OutputWord.count);
      this.#logits = f32("logits", sequences * sizes.vocabulary);
    } catch (error) {
      this[Symbol.dispose]();
      throw error;
    }
  }

  #allocate(label: string, type: "f32" | "u32", length: number): DeviceBuffer {
    const buffer = this.#options.backend.allocate(label, type, length);
    this.#buffers.push(buffer);
    return buffer;
  }

  /** Bytes on the device beside weights and cache. */
  get workingBytes(): number {
    return this.#buffers.reduce((sum, { byteLength }) => sum + byteLength, 0);
  }

  /** Tokens of `sequence` that are in the cache or were merged or dropped. */
  position(sequence = 0): number {
    return this.#positions[sequence]!;
  }

  /**
   * Tells the engine where a sequence ended up, once its outputs were read:
   * a stop id may have ended it before the steps that were enqueued.
   */
  setPosition(position: number, sequence = 0): void {
    this.#positions[sequence] = position;
  }

  /** Empties the cache. */
  reset(): void {
    this.cache.reset();
    this.#positions.fill(0);
    const { backend } = this.#options;
    backend.write(this.#seen, new Uint32Array(this.#seen.length));
  }

  /** Sets how the next ids of `sequence` are drawn and when it ends. */
  start(sampling: ResolvedSampling, limit: number, sequence = 0): void {
    const { backend } = this.#options;
    const u32 = new Uint32Array(SamplingWord.count);
    const f32 = new Float32Array(u32.buffer);
    f32[SamplingWord.temperature] = sampling.temperature;
    u32[SamplingWord.topK] = sampling.topK;
    f32[SamplingWord.topP] = sampling.topP;
    f32[SamplingWord.minP] = sampling.minP;
    f32[SamplingWord.repetitionPenalty] = sampling.repetitionPenalty;
    u32[SamplingWord.stopCount] = sampling.stopIds.length;
    u32.set(sampling.stopIds, SamplingWord.stopIds);
    backend.write(this.#sampling, u32, sequence * SamplingWord.count);
    const state = new Uint32Array(StateWord.count);
    state[StateWord.limit] = limit;
    state[StateWord.seedLow] = sampling.seed >>> 0;
    state[StateWord.seedHigh] = Math.floor(sampling.seed / 2 ** 32) >>> 0;
    backend.write(this.#state, state, sequence * StateWord.count);
  }

  /**
   * Enqueues one chunk of a prompt, at most `policy.schedule.chunk` ids.
   *
   * @param then What follows the last row: nothing, the next id sampled, or
   * the logits of all rows kept for {@link readLogits}.
   */
  prefill(
    ids: readonly number[],
    { sequence = 0, then }: {
      sequence?: number;
      then: "nothing" | "sample" | "logits";
    },
  ): void {
    const { backend } = this.#options;
    const position = this.#positions[sequence]!;
    this.#updateRope(position + ids.length);
    const chunk = new Uint32Array(ChunkWord.count);
    chunk[ChunkWord.sequence] = sequence;
    chunk[ChunkWord.rows] = ids.length;
    chunk[ChunkWord.position] = position;
    backend.write(this.#chunk, chunk);
    backend.write(this.#prompt, Uint32Array.from(ids));
    this.#program(`prefill, then ${then}`, (kernels) => {
      const step = this.#step("prefill");
      this.#forward(kernels, step);
      if (then === "sample") this.#sample(kernels, step, "last");
      if (then === "logits") {
        this.#head(kernels, step, this.#logitsOfAll(), "all");
      }
    }).run();
    this.#positions[sequence] = position + ids.length;
  }

  /** Enqueues `steps` decode steps of every sequence that has not ended. */
  decode(steps: number): void {
    const program = this.#program("decode", (kernels) => {
      const step = this.#step("decode");
      this.#forward(kernels, step);
      this.#sample(kernels, step, "all");
    });
    const { rope } = this.#options.config;
    for (let done = 0; done < steps;) {
      const next = Math.max(...this.#positions) + 1;
      // A table that depends on the length is written anew for every step.
      const fixed = ropeLength(rope, next) === ropeLength(rope, next + steps);
      const times = fixed ? steps - done : 1;
      this.#updateRope(next + times - 1);
      program.run(times);
      this.#positions.forEach((p, i) => this.#positions[i] = p + times);
      done += times;
    }
  }

  /**
   * Reads `count` sampled ids of a sequence, from the `first` one since
   * {@link start}. At most {@link maxUnread} may be left unread.
   */
  async readOutputs(
    first: number,
    count: number,
    sequence = 0,
  ): Promise<SampledId[]> {
    const { u32, f32 } = await this.#options.backend.read(
      this.#output,
      sequence * RING * OutputWord.count,
      RING * OutputWord.count,
    );
    return Array.from({ length: count }, (_, i) => {
      const at = (first + i) % RING * OutputWord.count;
      return {
        id: u32[at + OutputWord.id]!,
        logprob: f32[at + OutputWord.logprob]!,
      };
    });
  }

  /** Resolves once everything enqueued so far is done. */
  async done(): Promise<void> {
    await this.#options.backend.read(this.#chunk);
  }

  /** Sampled ids that the device keeps until they are read. */
  get maxUnread(): number {
    return RING;
  }

  /** `(rows, vocabulary)` logits of the last chunk that asked for them. */
  async readLogits(rows: number): Promise<Float32Array> {
    const { f32 } = await this.#options.backend.read(
      this.#logitsOfAll(),
      0,
      rows * this.#options.config.sizes.vocabulary,
    );
    return f32;
  }

  #logitsOfAll(): DeviceBuffer {
    const { policy, config } = this.#options;
    return this.#allLogits ??= this.#allocate(
      "logits of a chunk",
      "f32",
      policy.schedule.chunk * config.sizes.vocabulary,
    );
  }

  /** Makes the rope table fit a text of `length` tokens. */
  #updateRope(length: number): void {
    const { config, backend } = this.#options;
    if (length > MAX_POSITION) {
      throw new RangeError(
        `Cannot go on at position ${length}: expected at most ${MAX_POSITION}`,
      );
    }
    const wanted = ropeLength(config.rope, length);
    if (wanted === this.#ropeLength) return;
    const { inverse, scale } = inverseFrequencies(
      config.rope,
      config.sizes.headDim,
      wanted,
    );
    backend.write(this.#ropeBuffer, ropeTable(inverse, scale));
    this.#ropeLength = wanted;
  }

  #program(label: string, body: (kernels: Kernels) => void): Program {
    let program = this.#programs.get(label);
    if (program === undefined) {
      program = this.#options.backend.record(label, body);
      this.#programs.set(label, program);
    }
    return program;
  }

  #step(kind: "decode" | "prefill"): Step<DeviceBuffer> {
    const { policy, sequences } = this.#options;
    return {
      kind,
      rows: kind === "decode" ? sequences : policy.schedule.chunk,
      tokens: kind === "decode" ? this.#tokens : this.#prompt,
      chunk: this.#chunk,
      state: this.#state,
    };
  }

  #forward(kernels: Kernels, step: Step<DeviceBuffer>): void {
    const { weights, config, policy } = this.#options;
    forward(kernels, {
      weights,
      sizes: config.sizes,
      rope: this.#ropeBuffer,
      layers: this.cache.layers,
      policy,
      step,
      activations: this.#activations,
      seen: this.#seen,
    });
  }

  #head(
    kernels: Kernels,
    step: Step<DeviceBuffer>,
    logits: DeviceBuffer,
    rows: "all" | "last",
  ): void {
    const { weights, config } = this.#options;
    kernels.lmHead({
      logits,
      hidden: this.#activations.hidden,
      norm: weights.norm,
      weight: weights.head,
      rows,
      step,
      sizes: config.sizes,
    });
  }

  #sample(
    kernels: Kernels,
    step: Step<DeviceBuffer>,
    rows: "all" | "last",
  ): void {
    this.#head(kernels, step, this.#logits, rows);
    kernels.sample({
      nextTokens: this.#tokens,
      output: this.#output,
      ring: RING,
      logits: this.#logits,
      sampling: this.#sampling,
      seen: this.#seen,
      step,
      sizes: this.#options.config.sizes,
    });
  }

  /** Frees programs, buffers and the cache; the weights stay. */
  [Symbol.dispose](): void {
    for (const program of this.#programs.values()) program[Symbol.dispose]();
    this.#programs.clear();
    for (const buffer of this.#buffers) buffer[Symbol.dispose]();
    this.#buffers.length = 0;
    this.cache[Symbol.dispose]();
  }
}
