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
  NOT_FORCED,
  OutputWord,
  type Program,
  SamplingWord,
  StateWord,
  type Step,
} from "../backends/backend.ts";
import { SlotCache } from "../cache/slot_cache.ts";
import type { ModelConfig } from "../model/config.ts";
import { forward } from "../model/forward.ts";
import {
  inverseFrequencies,
  MAX_POSITION,
  meanRotation,
  ropeLength,
  ropeTable,
} from "../model/rope.ts";
import type { Weights } from "../model/weights.ts";
import type { Policy } from "../policies/parts.ts";
import {
  checkLength,
  guestTokens,
  longestPiece,
  promptPieces,
  stageRows,
} from "../policies/schedule.ts";
import { validatePolicy } from "../policies/validate_policy.ts";
import { type SampledId, sampledIds } from "./sampled_ids.ts";
import type { ResolvedSampling } from "./sampling.ts";
import { OUTPUT_RING, WorkingBuffers } from "./working_buffers.ts";

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

/** Runs a model on a backend. */
export class Engine implements Disposable {
  /** The cache. */
  readonly cache: SlotCache;
  /** Tokens in the cache of each sequence, as far as the host knows. */
  readonly #positions: number[];
  /** Whether decode steps work on each sequence, as far as the host knows. */
  readonly #running: boolean[];
  readonly #options: Required<EngineOptions>;
  readonly #buffers: WorkingBuffers;
  readonly #memory: DisposableStack;
  readonly #prefill: Program;
  readonly #sampleFirst: Program;
  readonly #decode: Program;
  #headOfChunk: Program | undefined;
  /** Length of text that the rope table was made for. */
  #ropeLength = NaN;

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
    this.#running = this.#positions.map(() => true);
    using memory = new DisposableStack();
    this.cache = memory.use(
      new SlotCache(backend, policy, {
        ...config,
        sequences,
        stageRows: stageRows(policy),
      }),
    );
    this.#buffers = memory.use(new WorkingBuffers(backend, this.#options));
    const prefill = this.#buffers.step("prefill");
    const decode = this.#buffers.step("decode");
    const record = (label: string, body: (kernels: Kernels) => void) =>
      memory.use(backend.record(label, body));
    // All at once, so that nothing is allocated while text is generated.
    this.#prefill = record("prefill", (kernels) => {
      this.#recordForward(kernels, prefill);
    });
    this.#sampleFirst = record("sample after prefill", (kernels) => {
      this.#recordSample(kernels, prefill, "last");
    });
    this.#decode = record("decode", (kernels) => {
      this.#recordForward(kernels, decode);
      this.#recordSample(kernels, decode, "all");
    });
    for (let i = 0; i < sequences; i++) this.stop(i);
    this.#memory = memory.move();
  }

  /** Bytes on the device beside weights and cache. */
  get workingBytes(): number {
    return this.#buffers.byteLength;
  }

  /** Sequences that are decoded together. */
  get sequences(): number {
    return this.#options.sequences;
  }

  /** Tokens of `sequence` that are in the cache or were merged or dropped. */
  position(sequence = 0): number {
    return this.#positions[sequence]!;
  }

  /** The same of all sequences together. */
  get contextTokens(): number {
    return this.#positions.reduce((sum, position) => sum + position, 0);
  }

  /**
   * Tells the engine where a sequence ended up, once its outputs were read:
   * a stop id may have ended it before the steps that were enqueued.
   */
  setPosition(position: number, sequence = 0): void {
    this.#positions[sequence] = position;
  }

  /**
   * Cuts a prompt into the pieces that the policy's schedule reads at once.
   *
   * @throws {RangeError} If the schedule reads prompts whole, and this one is
   * too long.
   */
  pieces(prompt: readonly number[]): (readonly number[])[] {
    return promptPieces(prompt, this.#options.policy.schedule);
  }

  /** Empties the cache. */
  reset(): void {
    this.cache.reset();
    this.#positions.fill(0);
    const { seen } = this.#buffers;
    this.#options.backend.write(seen, new Uint32Array(seen.length));
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
    backend.write(this.#buffers.sampling, u32, sequence * SamplingWord.count);
    const state = new Uint32Array(StateWord.count);
    state[StateWord.limit] = limit;
    state[StateWord.seedLow] = sampling.seed >>> 0;
    state[StateWord.seedHigh] = Math.floor(sampling.seed / 2 ** 32) >>> 0;
    backend.write(this.#buffers.state, state, sequence * StateWord.count);
    this.#running[sequence] = true;
    this.force(
      Array.from({ length: OUTPUT_RING }, () => NOT_FORCED),
      { first: 0, sequence },
    );
  }

  /** Makes decode steps leave `sequence` alone until it is started. */
  stop(sequence: number): void {
    if (!this.#running[sequence]) return;
    this.#running[sequence] = false;
    this.#options.backend.write(
      this.#buffers.state,
      Uint32Array.of(1),
      sequence * StateWord.count + StateWord.finished,
    );
  }

  /**
   * Makes the steps that sample the `first` id since {@link start} and the ones
   * after it take these ids, whatever their probabilities. At most
   * `OUTPUT_RING` steps may be set ahead.
   */
  force(
    ids: readonly number[],
    { first, sequence = 0 }: { first: number; sequence?: number },
  ): void {
    const { backend } = this.#options;
    const base = sequence * OUTPUT_RING;
    const at = first % OUTPUT_RING;
    const [end, begin] = [
      ids.slice(0, OUTPUT_RING - at),
      ids.slice(OUTPUT_RING - at),
    ];
    const { forced } = this.#buffers;
    backend.write(forced, Uint32Array.from(end), base + at);
    if (begin.length > 0) backend.write(forced, Uint32Array.from(begin), base);
  }

  /**
   * Enqueues one piece of a prompt: see {@link pieces}.
   *
   * @param then What follows the last row: nothing, the next id sampled, or
   * the logits of all rows kept for {@link readLogits}.
   * @throws {RangeError} If it is longer than the policy's schedule reads at
   * once.
   */
  prefill(
    ids: readonly number[],
    { sequence = 0, then }: {
      sequence?: number;
      then: "nothing" | "sample" | "logits";
    },
  ): void {
    const { backend, policy } = this.#options;
    checkLength(ids.length, longestPiece(policy.schedule));
    const position = this.#positions[sequence]!;
    const guests = guestTokens(policy);
    this.#updateRope(position + ids.length + guests.length);
    const chunk = new Uint32Array(ChunkWord.count);
    chunk[ChunkWord.sequence] = sequence;
    chunk[ChunkWord.rows] = ids.length;
    chunk[ChunkWord.position] = position;
    chunk[ChunkWord.guests] = guests.length;
    backend.write(this.#buffers.chunk, chunk);
    backend.write(this.#buffers.prompt, Uint32Array.from([...ids, ...guests]));
    this.#prefill.run();
    if (then === "sample") this.#sampleFirst.run();
    if (then === "logits") this.#recordHeadOfChunk().run();
    this.#positions[sequence] = position + ids.length;
  }

  /** Enqueues `steps` decode steps of every sequence that has not ended. */
  decode(steps: number): void {
    const { rope } = this.#options.config;
    for (let done = 0; done < steps;) {
      const running = this.#positions.filter((_, i) => this.#running[i]);
      if (running.length === 0) return;
      const next = Math.max(...running) + 1;
      // A table that depends on the length is written anew for every step.
      const fixed = ropeLength(rope, next) === ropeLength(rope, next + steps);
      const times = fixed ? steps - done : 1;
      this.#updateRope(next + times - 1);
      this.#decode.run(times);
      this.#running.forEach((running, i) => {
        if (running) this.#positions[i]! += times;
      });
      done += times;
    }
  }

  /**
   * Reads `count` sampled ids of a sequence, from the `first` one since
   * {@link start}. The device keeps the last `OUTPUT_RING` of them.
   */
  async readOutputs(
    first: number,
    count: number,
    sequence = 0,
  ): Promise<SampledId[]> {
    const ring = await this.#options.backend.read(
      this.#buffers.output,
      sequence * OUTPUT_RING * OutputWord.count,
      OUTPUT_RING * OutputWord.count,
    );
    return sampledIds(ring, { first, count, sequence: 0 });
  }

  /** The same for every sequence at once, `(sequences, count)`. */
  async readAllOutputs(first: number, count: number): Promise<SampledId[][]> {
    const { output } = this.#buffers;
    const rings = await this.#options.backend.read(output);
    return this.#positions.map((_, sequence) =>
      sampledIds(rings, { first, count, sequence })
    );
  }

  /** Resolves once everything enqueued so far is done. */
  async done(): Promise<void> {
    await this.#options.backend.read(this.#buffers.chunk);
  }

  /** `(rows, vocabulary)` logits of the last chunk that asked for them. */
  async readLogits(rows: number): Promise<Float32Array> {
    const { f32 } = await this.#options.backend.read(
      this.#buffers.chunkLogits,
      0,
      rows * this.#options.config.sizes.vocabulary,
    );
    return f32;
  }

  /** Makes the rope table fit a text of `length` tokens. */
  #updateRope(length: number): void {
    const { config, backend, policy: { score } } = this.#options;
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
    const { rope, ahead } = this.#buffers;
    backend.write(rope, ropeTable(inverse, scale));
    if (ahead !== undefined && score.kind === "expected") {
      backend.write(ahead, meanRotation(inverse, score.horizon));
    }
    this.#ropeLength = wanted;
  }

  /** The head over all rows of a chunk, which only evaluation asks for. */
  #recordHeadOfChunk(): Program {
    const { chunkLogits } = this.#buffers;
    const step = this.#buffers.step("prefill");
    return this.#headOfChunk ??= this.#memory.use(
      this.#options.backend.record("logits of a chunk", (kernels) => {
        this.#recordHead(kernels, step, chunkLogits, "all");
      }),
    );
  }

  #recordForward(kernels: Kernels, step: Step<DeviceBuffer>): void {
    const { weights, config, policy } = this.#options;
    const { rope, ahead, activations, seen } = this.#buffers;
    forward(kernels, {
      weights,
      sizes: config.sizes,
      rope,
      ...(ahead && { ahead }),
      layers: this.cache.layers,
      policy,
      step,
      activations,
      seen,
    });
  }

  #recordHead(
    kernels: Kernels,
    step: Step<DeviceBuffer>,
    logits: DeviceBuffer,
    rows: "all" | "last",
  ): void {
    const { weights, config } = this.#options;
    kernels.lmHead({
      logits,
      hidden: this.#buffers.activations.hidden,
      norm: weights.norm,
      weight: weights.head,
      rows,
      step,
      sizes: config.sizes,
    });
  }

  #recordSample(
    kernels: Kernels,
    step: Step<DeviceBuffer>,
    rows: "all" | "last",
  ): void {
    const { tokens, output, forced, logits, sampling, seen } = this.#buffers;
    this.#recordHead(kernels, step, logits, rows);
    kernels.sample({
      nextTokens: tokens,
      output,
      forced,
      ring: OUTPUT_RING,
      logits,
      sampling,
      seen,
      step,
      sizes: this.#options.config.sizes,
    });
  }

  /** Frees programs, buffers and the cache; the weights stay. */
  [Symbol.dispose](): void {
    this.#memory.dispose();
  }
}
