/**
 * The buffers that a generation works in, beside weights and cache.
 *
 * @module
 */
import {
  type Backend,
  ChunkWord,
  type DeviceBuffer,
  OutputWord,
  SamplingWord,
  StateWord,
  type Step,
} from "../backends/backend.ts";
import type { ModelConfig } from "../model/config.ts";
import type { Activations } from "../model/forward.ts";
import type { Policy } from "../policies/parts.ts";
import { stageRows } from "../policies/schedule.ts";

/**
 * Sampled ids per sequence that the device keeps until they are read: more than
 * the two batches of any backend.
 */
export const OUTPUT_RING = 64;

/** What the sizes of the buffers follow from. */
export interface WorkingBufferOptions {
  readonly config: ModelConfig;
  readonly policy: Policy;
  /** Sequences that are decoded together. */
  readonly sequences: number;
}

/** Activations, step state and sampling buffers of one engine. */
export class WorkingBuffers implements Disposable {
  /** Buffers between kernels. */
  readonly activations: Activations;
  /** `(3, 256, headDim / 2, 2)` f32: rotations by position. */
  readonly rope: DeviceBuffer;
  /** `(headDim / 2, 2)` f32, where the policy expects queries. */
  readonly ahead?: DeviceBuffer;
  /** `(sequences, StateWord.count)` u32. */
  readonly state: DeviceBuffer;
  /** `(ChunkWord.count)` u32. */
  readonly chunk: DeviceBuffer;
  /** `(chunk rows)` u32: ids of a prefill step. */
  readonly prompt: DeviceBuffer;
  /** `(sequences)` u32: ids of a decode step. */
  readonly tokens: DeviceBuffer;
  /** `(sequences, ceil(vocabulary / 32))` u32: ids seen. */
  readonly seen: DeviceBuffer;
  /** `(sequences, SamplingWord.count)` u32. */
  readonly sampling: DeviceBuffer;
  /** `(sequences, OUTPUT_RING, OutputWord.count)` u32. */
  readonly output: DeviceBuffer;
  /** `(sequences, OUTPUT_RING)` u32: ids to take instead of sampling. */
  readonly forced: DeviceBuffer;
  /** `(sequences, vocabulary)` f32. */
  readonly logits: DeviceBuffer;
  readonly #backend: Backend;
  readonly #options: WorkingBufferOptions;
  readonly #all: DeviceBuffer[] = [];
  #chunkLogits: DeviceBuffer | undefined;

  /** Allocates the buffers. */
  constructor(backend: Backend, options: WorkingBufferOptions) {
    this.#backend = backend;
    this.#options = options;
    const { config: { sizes }, policy, sequences } = options;
    const promptRows = stageRows(policy);
    const rows = Math.max(promptRows, sequences);
    const headsWidth = sizes.heads * sizes.headDim;
    const f32 = (label: string, length: number) =>
      this.#allocate(label, "f32", length);
    const u32 = (label: string, length: number) =>
      this.#allocate(label, "u32", length);
    try {
      this.activations = {
        hidden: f32("hidden", rows * sizes.hidden),
        queries: f32("queries", rows * headsWidth),
        ...(policy.select.sinkPositions === "cache" && {
          sinkQueries: f32("sink queries", rows * headsWidth),
        }),
        attention: f32("attention", rows * headsWidth),
        logSums: f32("log sums", rows * sizes.heads),
        ffn: f32("ffn", rows * sizes.ffn),
      };
      this.rope = f32("rope", 3 * 256 * sizes.headDim);
      if (policy.score.kind === "expected") {
        this.ahead = f32("mean rotation ahead", sizes.headDim);
      }
      this.state = u32("state", sequences * StateWord.count);
      this.chunk = u32("chunk", ChunkWord.count);
      this.prompt = u32("prompt ids", promptRows);
      this.tokens = u32("ids", sequences);
      this.seen = u32("ids seen", sequences * Math.ceil(sizes.vocabulary / 32));
      this.sampling = u32("sampling", sequences * SamplingWord.count);
      this.output = u32("output", sequences * OUTPUT_RING * OutputWord.count);
      this.forced = u32("forced ids", sequences * OUTPUT_RING);
      this.logits = f32("logits", sequences * sizes.vocabulary);
    } catch (error) {
      this[Symbol.dispose]();
      throw error;
    }
  }

  /** `(chunk rows, vocabulary)` f32, allocated when first asked for. */
  get chunkLogits(): DeviceBuffer {
    const { policy, config } = this.#options;
    return this.#chunkLogits ??= this.#allocate(
      "logits of a chunk",
      "f32",
      stageRows(policy) * config.sizes.vocabulary,
    );
  }

  /** Bytes that the device holds for them. */
  get byteLength(): number {
    return this.#all.reduce((sum, { byteLength }) => sum + byteLength, 0);
  }

  /** The rows of a step, as kernels take them. */
  step(kind: Step<DeviceBuffer>["kind"]): Step<DeviceBuffer> {
    const { policy, sequences } = this.#options;
    return {
      kind,
      rows: kind === "decode" ? sequences : stageRows(policy),
      tokens: kind === "decode" ? this.tokens : this.prompt,
      chunk: this.chunk,
      state: this.state,
    };
  }

  #allocate(label: string, type: "f32" | "u32", length: number): DeviceBuffer {
    const buffer = this.#backend.allocate(label, type, length);
    this.#all.push(buffer);
    return buffer;
  }

  /** Frees the buffers. */
  [Symbol.dispose](): void {
    for (const buffer of this.#all) buffer[Symbol.dispose]();
    this.#all.length = 0;
  }
}
