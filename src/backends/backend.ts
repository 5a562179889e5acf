/**
 * The interface every backend implements: memory, programs and the kernels
 * that a program is made of.
 *
 * A {@link Program} is recorded once, by calling kernels in order, and run many
 * times. The CPU backend keeps the calls, WebGPU the dispatches, CUDA a graph.
 * Kernel arguments are generic over the tensor type `T`: a backend sees
 * {@link DeviceBuffer}, the reference functions in `src/reference` see
 * {@link HostTensor}. One set of names, one meaning.
 *
 * @module
 */
import type { Policy, Precision } from "../policies/parts.ts";

/** The name of a backend. */
export type BackendName = "cpu" | "webgpu" | "cuda";

/**
 * What a buffer holds. `half` is the type of weights, keys and values: 16-bit
 * floats on a GPU, 32-bit floats on the CPU (see {@link Backend.halfBytes}). Keys
 * and values may be of another 16-bit type (see {@link Backend.precision}).
 */
export type ElementType = "f32" | "u32" | "half";

/** The same memory, seen as 32-bit floats and as 32-bit words. */
export interface HostTensor {
  /** The elements as floats. */
  readonly f32: Float32Array;
  /** The bits of the same elements. */
  readonly u32: Uint32Array;
}

/** A buffer on the device, zero when allocated. */
export interface DeviceBuffer extends Disposable {
  /** What the buffer is for, used in error messages. */
  readonly label: string;
  /** The type of its elements. */
  readonly type: ElementType;
  /** Number of elements. */
  readonly length: number;
  /** Bytes that the device really holds for it. */
  readonly byteLength: number;
}

/**
 * A weight matrix `(rows, columns)`, one row per output, of type `half`. A
 * backend may split it into blocks of rows and pad its columns.
 */
export interface DeviceMatrix extends Disposable {
  /** What the matrix is, used in error messages. */
  readonly label: string;
  /** Number of outputs. */
  readonly rows: number;
  /** Number of inputs. */
  readonly columns: number;
  /** Bytes that the device really holds for it. */
  readonly byteLength: number;
}

/** A recorded list of kernels. */
export interface Program extends Disposable {
  /** What the program does, used in error messages. */
  readonly label: string;
  /**
   * Enqueues the program `times` times (once unless told otherwise) and
   * returns before the device is done.
   */
  run(times?: number): void;
}

/** Memory, programs and kernels of one device. */
export interface Backend extends AsyncDisposable {
  /** Which backend this is. */
  readonly name: BackendName;
  /** The device in words. */
  readonly description: string;
  /** Bytes of one `half` element on this backend: 2 or 4. */
  readonly halfBytes: 2 | 4;
  /**
   * The type of keys and values: `half`, which is what this backend takes unless
   * told otherwise (see {@link ElementType}), or what it was opened for.
   */
  readonly precision: Precision["kind"];
  /** Decode steps worth enqueueing before their ids are read back together. */
  readonly stepsPerRead: number;
  /**
   * Bytes that the device holds: live buffers and matrices, scratch of live
   * programs, and staging memory that is kept for the next read.
   */
  readonly bytesAllocated: number;

  /** Allocates a zeroed buffer of `length` elements. */
  allocate(label: string, type: ElementType, length: number): DeviceBuffer;
  /**
   * Allocates a zeroed matrix. Where a backend splits it, it splits only at
   * multiples of `rowGroup` rows.
   */
  allocateMatrix(label: string, shape: MatrixShape): DeviceMatrix;
  /** Writes `data` at element `offset`; ordered with the programs run. */
  write(
    buffer: DeviceBuffer,
    data: Float32Array | Uint32Array,
    offset?: number,
  ): void;
  /** Writes whole rows of a matrix, converting to the type it is stored in. */
  writeRows(
    matrix: DeviceMatrix,
    data: Float32Array,
    options: WriteRowsOptions,
  ): void;
  /**
   * Reads `length` elements from `offset` as they are once everything enqueued
   * before this call is done. `half` elements arrive as floats. Several reads
   * may be in flight.
   *
   * @throws {DeviceLostError} If the device was lost.
   * @throws {KernelError} If a kernel that ran before was at fault.
   */
  read(
    buffer: DeviceBuffer,
    offset?: number,
    length?: number,
  ): Promise<HostTensor>;
  /** Records the kernels that `body` calls. Nothing runs yet. */
  record(label: string, body: (kernels: Kernels) => void): Program;
}

/** Shape of a matrix to allocate. */
export interface MatrixShape {
  /** Number of outputs. */
  readonly rows: number;
  /** Number of inputs. */
  readonly columns: number;
  /** Rows that must stay together, 1 unless told otherwise. */
  readonly rowGroup?: number;
}

/** Where {@link Backend.writeRows} puts its rows. */
export interface WriteRowsOptions {
  /** Row of the matrix that takes the first row of the data. */
  readonly firstRow: number;
  /** Distance between rows written, 1 unless told otherwise. */
  readonly rowStep?: number;
}

/** Sizes of a model that kernels are specialised for. */
export interface ModelSizes {
  /** Width of the residual stream. */
  readonly hidden: number;
  /** Query heads. */
  readonly heads: number;
  /** Key/value heads; divides `heads`. */
  readonly kvHeads: number;
  /** Width of one head, even. */
  readonly headDim: number;
  /** Width of the feed-forward layer. */
  readonly ffn: number;
  /** Number of token ids. */
  readonly vocabulary: number;
  /** Epsilon of the RMS norms. */
  readonly normEpsilon: number;
}

/**
 * The rows that a program works on. In a `decode` step row `r` is the next
 * token of sequence `r`; in a `prefill` step the rows are consecutive prompt
 * tokens of one sequence. Rows that are not live (a finished sequence, a chunk
 * that is not full) are skipped by every kernel.
 */
export interface Step<T> {
  /** What kind of step it is. */
  readonly kind: "decode" | "prefill";
  /** Rows that the program is recorded for. */
  readonly rows: number;
  /** `(rows)` u32: input token ids. In decode, `sample` writes the next ones. */
  readonly tokens: T;
  /** {@link ChunkWord} u32: what a prefill step works on; unused in decode. */
  readonly chunk: T;
  /** `(sequences, StateWord.count)` u32: see {@link StateWord}. */
  readonly state: T;
}

/** Words of {@link Step.chunk}. */
export const ChunkWord = {
  /** Sequence that the rows belong to. */
  sequence: 0,
  /** Live rows; with the guests at most `step.rows`. */
  rows: 1,
  /** Position of row 0 in the text. */
  position: 2,
  /**
   * Rows after the live ones that are guests: they go through the layers and
   * attend like rows of the text, at the positions after it, but are not part
   * of it. They are never stored, sampled from or counted as seen; the policy's
   * probe may observe them.
   */
  guests: 3,
  /** Words in all. */
  count: 4,
} as const;

/** Words of one sequence in {@link Step.state}. */
export const StateWord = {
  /** Position of the next token in the text. */
  position: 0,
  /** 1 when decode steps must leave the sequence alone. */
  finished: 1,
  /** Ids sampled so far; index into the output ring, modulo its length. */
  produced: 2,
  /** `sample` sets `finished` when `produced` reaches this number. */
  limit: 3,
  /** Seed of the random numbers, low and high word. */
  seedLow: 4,
  seedHigh: 5,
  /** Words in all. */
  count: 8,
} as const;

/** Words of one sequence's sampling options; floats are stored by their bits. */
export const SamplingWord = {
  /** f32; 0 takes the most likely id. */
  temperature: 0,
  /** u32; 0 keeps all. */
  topK: 1,
  /** f32; 1 keeps all. */
  topP: 2,
  /** f32; 0 keeps all. */
  minP: 3,
  /** f32; 1 changes nothing. */
  repetitionPenalty: 4,
  /** u32; number of stop ids that follow. */
  stopCount: 5,
  /** u32; the first stop id. */
  stopIds: 8,
  /** Words in all: room for 24 stop ids. */
  count: 32,
} as const;

/** Words of one entry of the output ring. */
export const OutputWord = {
  /** u32; the sampled id. */
  id: 0,
  /** f32; its natural-log probability before temperature and filters. */
  logprob: 1,
  /** Words in all. */
  count: 2,
} as const;

/**
 * Fields that each slot has beside its key and value. They are stored field by
 * field: field `f` of slot `i` is element `f * total + i` of `Slots.side`.
 */
export const SlotField = {
  /** f32: ln of the exponential moving sum S of the slot's scores. */
  ema: 0,
  /** f32: sum of the attention weights the slot received. */
  accumulated: 1,
  /** u32: attention rows that observed the slot. */
  observations: 2,
  /** u32: position in the text of the token that gave the slot its place. */
  position: 3,
  /** u32: tokens the slot stands for; 0 marks a free slot. */
  tokens: 4,
  /** f32: norm of the slot's value, where the policy counts it; see `Values`. */
  valueNorm: 5,
  /** f32: ln of the slot's votes, one field per lane; {@link FREE_BIAS} if free. */
  bias: 6,
} as const;

/**
 * Fields of the partner that a slot remembers, from {@link partnerField} on,
 * where the policy's slots remember one.
 */
export const PartnerField = {
  /**
   * u32: one more than the index in its head of a slot that this one would be
   * merged into, or 0 if it knows none. A free slot knows none.
   */
  slot: 0,
  /** f32: how far the two are apart, as measured when they were compared. */
  distance: 1,
  /** Fields in all. */
  count: 2,
} as const;

/**
 * The first of the fields after the vote biases: see {@linkcode PartnerField}.
 *
 * @param lanes Vote biases of a slot.
 */
export function partnerField(lanes: number): number {
  return SlotField.bias + lanes;
}

/**
 * Steps from one search for partners to the next, at most: a search reads all
 * keys and values of a head, an eighth of what attention reads in eight steps.
 */
export const SEARCH_EVERY = 8;

/**
 * Slots of a head's budget for each of these steps: a head of fewer is searched
 * more often. In a step, a slot is merged and another one is no longer recent;
 * up to the next search neither of them finds a partner, and where they are
 * many of the head's slots, dearer pairs have to merge.
 */
export const SEARCH_SLOTS = 64;

/** Vote bias of a free slot: finite, and zero weight in any softmax. */
export const FREE_BIAS: number = -1e30;

/** Entry of {@link Sample.forced} that leaves the choice to `sample`. */
export const NOT_FORCED = 0xffff_ffff;

/** ln 0 for the moving sum of a slot that nobody observed yet. */
export const LOG_ZERO: number = -1e30;

/**
 * Where the numbers of one query head are among its own in
 * {@link CacheLayer.statistics}, in floats.
 */
export interface QueryStatisticsLayout {
  /** `(headDim)`: mean of the unrotated queries. */
  readonly mean: number;
  /** `(headDim / 2)`: mean squared distance from it, per RoPE pair. */
  readonly scatter: number;
  /** `(headDim)`: mean of the queries that are expected, rotated like keys. */
  readonly future: number;
  /** `(headDim / 2)`: their variance per element, per RoPE pair. */
  readonly variance: number;
  /** Queries that were counted; a float holds {@link StateWord.position}s. */
  readonly count: number;
  /** Floats in all. */
  readonly length: number;
}

/** Works out {@link QueryStatisticsLayout} for heads of a width. */
export function queryStatisticsLayout(headDim: number): QueryStatisticsLayout {
  return {
    mean: 0,
    scatter: headDim,
    future: 3 * headDim / 2,
    variance: 5 * headDim / 2,
    count: 3 * headDim,
    length: 3 * headDim + 1,
  };
}

/** Slots of one layer: the cache proper, or the staged rows of a chunk. */
export interface Slots<T> {
  /** `(total, headDim)` half: keys, rotated. */
  readonly keys: T;
  /** `(total, headDim)` half: values. */
  readonly values: T;
  /**
   * `(SlotField.bias + lanes, total)`: see {@link SlotField}; those of
   * {@linkcode PartnerField} more where slots remember partners.
   */
  readonly side: T;
  /** Slots in all, over sequences and KV heads. */
  readonly total: number;
}

/**
 * Words of one (layer, sequence, KV head) in the head table, in this order.
 * The layout is ragged: each head has its own offset, capacity and budget. The
 * heads of a sequence follow one another without a gap, in order; where they
 * are adaptive, the first `compress` of a text sets these three words.
 */
export const HeadWord = {
  /** First slot of the head in its layer. */
  offset: 0,
  /** Slots the head owns. */
  capacity: 1,
  /** Slots that may be live after a step. */
  budget: 2,
  /** Newest tokens that are never evicted. */
  recent: 3,
  /** Live slots. */
  live: 4,
  /** Free slot that takes the next token, counted from `offset`. */
  next: 5,
  /** Slots `offset .. offset + high` are the only ones ever used. */
  high: 6,
  /** Slots merged into another one. */
  merged: 7,
  /** Slots dropped. */
  dropped: 8,
  /** Tokens that the dropped slots stood for. */
  droppedTokens: 9,
  /** ZIP merges that fell back to real votes because their scale was unsafe. */
  guarded: 10,
  /** f32: sum over merges of KL(merge weights, vote shares). */
  divergence: 11,
  /** f32: cosine that a slot needs to be merged (D2O); 0 before the first. */
  threshold: 12,
  /**
   * f32: how far the values of the head scatter, by which slots with partners
   * are compared; 0 before it is measured.
   */
  spread: 13,
  /** Words in all. */
  count: 16,
} as const;

/** One layer of the slot cache, as kernels see it. */
export interface CacheLayer<T> {
  /** Index of the layer. */
  readonly layer: number;
  /** Sequences that the cache holds. */
  readonly sequences: number;
  /** Vote biases per slot: 1, or one per query head of the group. */
  readonly lanes: number;
  /** Largest capacity that a head of this layer may have, for scratch sizes. */
  readonly maxCapacity: number;
  /** The slots of the layer. */
  readonly slots: Slots<T>;
  /**
   * Rows of the chunk being read, `(kvHeads, stageRows)` slots; shared by all
   * layers, because each layer empties it before the next one fills it.
   */
  readonly stage: Slots<T>;
  /** Rows of the stage per KV head. */
  readonly stageRows: number;
  /** `(layers, sequences, kvHeads, HeadWord.count)` u32. */
  readonly table: T;
  /**
   * `(sequences, heads, QueryStatisticsLayout.length)` f32, for policies whose
   * score is `expected`: what is known of the layer's queries.
   */
  readonly statistics?: T;
}

/** What every kernel works on. */
export interface StepArgs<T> {
  /** The rows to work on. */
  readonly step: Step<T>;
  /** Sizes of the model. */
  readonly sizes: ModelSizes;
}

/** What the kernels of attention and of the policy work on. */
export interface AttentionArgs<T> extends StepArgs<T> {
  /** `(rows, heads, headDim)` f32: rotated queries. */
  readonly queries: T;
  /** `(rows, heads, headDim)` f32: see {@link QkvRopeAppend.sinkQueries}. */
  readonly sinkQueries?: T;
  /** The layer's cache. */
  readonly cache: CacheLayer<T>;
  /** What is done with slots that do not fit. */
  readonly policy: Policy;
}

/** Arguments of {@link Kernels.embed}. */
export interface Embed<T, M> extends StepArgs<T> {
  /** Output `(rows, hidden)` f32. */
  readonly hidden: T;
  /** Output `(sequences, ceil(vocabulary / 32))` u32: bit set of ids seen. */
  readonly seen: T;
  /** `(vocabulary, hidden)`. */
  readonly embedding: M;
}

/** Arguments of {@link Kernels.qkvRopeAppend}. */
export interface QkvRopeAppend<T, M> extends StepArgs<T> {
  /** Output `(rows, heads, headDim)` f32: rotated queries. */
  readonly queries: T;
  /**
   * Output `(rows, heads, headDim)` f32, for policies whose sinks have cache
   * positions: the queries rotated to their index in the cache.
   */
  readonly sinkQueries?: T;
  /** `(rows, hidden)` f32. */
  readonly hidden: T;
  /** `(hidden)` f32. */
  readonly norm: T;
  /** `((heads + 2 * kvHeads) * headDim, hidden)`: q, then k, then v. */
  readonly weight: M;
  /** `((heads + 2 * kvHeads) * headDim)` f32, where the model has biases. */
  readonly bias?: T;
  /** `(headDim)` f32, where the model norms each query head. */
  readonly queryNorm?: T;
  /** `(headDim)` f32, where the model norms each key head. */
  readonly keyNorm?: T;
  /** `(3, 256, headDim / 2, 2)` f32: see `src/model/rope.ts`. */
  readonly rope: T;
  /** The layer's cache. */
  readonly cache: CacheLayer<T>;
}

/** Arguments of {@link Kernels.valueNorms}. */
export interface ValueNorms<T, M> extends StepArgs<T> {
  /**
   * `(hidden, heads * headDim)`: the layer's output projection, for norms of
   * projected values; for norms of the values themselves there is none.
   */
  readonly weight?: M;
  /** The layer's cache. */
  readonly cache: CacheLayer<T>;
}

/** Arguments of {@link Kernels.queryStatistics}. */
export interface QueryStatistics<T> extends AttentionArgs<T> {
  /** `(3, 256, headDim / 2, 2)` f32: see `src/model/rope.ts`. */
  readonly rope: T;
  /**
   * `(headDim / 2, 2)` f32: mean of the rotations by the next positions; see
   * `meanRotation` of `src/model/rope.ts`.
   */
  readonly ahead: T;
}

/** Arguments of {@link Kernels.mergeAttend}. */
export interface MergeAttend<T> extends AttentionArgs<T> {
  /** Output `(rows, heads, headDim)` f32. */
  readonly output: T;
}

/** Arguments of {@link Kernels.prefillAttend}. */
export interface PrefillAttend<T> extends AttentionArgs<T> {
  /** Output `(rows, heads, headDim)` f32. */
  readonly output: T;
  /**
   * Output `(rows, heads)` f32: ln of the softmax sum of each row, at the scale
   * of the policy's scores.
   */
  readonly logSums: T;
}

/** Arguments of {@link Kernels.observe} and {@link Kernels.compress}. */
export interface Compress<T> extends AttentionArgs<T> {
  /** `(rows, heads)` f32, from {@link Kernels.prefillAttend}. */
  readonly logSums: T;
}

/** Arguments of {@link Kernels.projectAdd}. */
export interface ProjectAdd<T, M> {
  /** Input and output `(rows, hidden)` f32: `hidden += input · weightᵀ + bias`. */
  readonly hidden: T;
  /** `(rows, weight.columns)` f32. */
  readonly input: T;
  /** `(hidden, columns)`. */
  readonly weight: M;
  /** `(hidden)` f32, where the model has biases. */
  readonly bias?: T;
  /** The rows to work on. */
  readonly step: Step<T>;
}

/** Arguments of {@link Kernels.gateUp}. */
export interface GateUp<T, M> extends StepArgs<T> {
  /** Output `(rows, ffn)` f32: `silu(gate) * up`. */
  readonly output: T;
  /** `(rows, hidden)` f32. */
  readonly hidden: T;
  /** `(hidden)` f32. */
  readonly norm: T;
  /** `(2 * ffn, hidden)`: rows gate 0, up 0, gate 1, up 1, … */
  readonly weight: M;
  /** `(2 * ffn)` f32 in the same order, where the model has biases. */
  readonly bias?: T;
}

/** Arguments of {@link Kernels.lmHead}. */
export interface LmHead<T, M> extends StepArgs<T> {
  /**
   * Output f32. `all`: `(rows, vocabulary)`. `last` in a prefill step: `(1,
   * vocabulary)`, the logits after the chunk's last live row.
   */
  readonly logits: T;
  /** `(rows, hidden)` f32. */
  readonly hidden: T;
  /** `(hidden)` f32. */
  readonly norm: T;
  /** `(vocabulary, hidden)`. */
  readonly weight: M;
  /** Which rows to compute. */
  readonly rows: "all" | "last";
}

/** Arguments of {@link Kernels.sample}. */
export interface Sample<T> extends StepArgs<T> {
  /**
   * Output `(sequences)` u32: the sampled ids, read by the next decode step.
   */
  readonly nextTokens: T;
  /** Output `(sequences, ring, OutputWord.count)`. */
  readonly output: T;
  /**
   * `(sequences, ring)` u32: the id to take at each entry of the ring, whatever
   * its probability, or {@link NOT_FORCED}.
   */
  readonly forced: T;
  /** Entries of the ring per sequence. */
  readonly ring: number;
  /** `(rows, vocabulary)` f32 in decode, `(1, vocabulary)` in prefill. */
  readonly logits: T;
  /** `(sequences, SamplingWord.count)` u32. */
  readonly sampling: T;
  /** `(sequences, ceil(vocabulary / 32))` u32: ids seen, from `embed`. */
  readonly seen: T;
}

/**
 * The kernels. Each has a reference of the same name in `src/reference` that
 * defines what it computes, and a WGSL twin in `shaders`.
 *
 * @typeParam T A tensor: {@link DeviceBuffer} or {@link HostTensor}.
 * @typeParam M A weight matrix: {@link DeviceMatrix} or a host one.
 */
export interface Kernels<T = DeviceBuffer, M = DeviceMatrix> {
  /** Looks up token embeddings and marks the ids as seen. */
  embed(args: Embed<T, M>): void;
  /** RMS norm, q|k|v product, RoPE; writes keys and values to free slots. */
  qkvRopeAppend(args: QkvRopeAppend<T, M>): void;
  /** Writes the norms of the values that {@link qkvRopeAppend} appended. */
  valueNorms(args: ValueNorms<T, M>): void;
  /**
   * Adds the queries of the rows to the statistics of their heads, and works
   * out what queries are expected after the last row.
   */
  queryStatistics(args: QueryStatistics<T>): void;
  /**
   * Decode attention over voted slots. Then, per KV head: updates scores,
   * and where the head is over budget picks a victim and merges or drops it.
   */
  mergeAttend(args: MergeAttend<T>): void;
  /** Causal attention of a chunk over the slots and over itself. */
  prefillAttend(args: PrefillAttend<T>): void;
  /** Adds the observed rows of a chunk to the scores of slots and staged rows. */
  observe(args: Compress<T>): void;
  /**
   * Moves staged rows into the slots, merging or dropping down to the budget,
   * which adaptive heads are given first.
   */
  compress(args: Compress<T>): void;
  /** `hidden += input · weightᵀ + bias`. */
  projectAdd(args: ProjectAdd<T, M>): void;
  /** RMS norm, then `silu(gate) * up`. */
  gateUp(args: GateUp<T, M>): void;
  /** Final RMS norm and the product with the output embedding. */
  lmHead(args: LmHead<T, M>): void;
  /** Samples the next id and advances the sequence. */
  sample(args: Sample<T>): void;
}
