/**
 * One layer of a slot cache on a backend, filled by a test, and the same
 * attention in 64-bit floats to compare with.
 */
import {
  type Backend,
  type CacheLayer,
  ChunkWord,
  type DeviceBuffer,
  FREE_BIAS,
  HeadWord,
  type ModelSizes,
  partnerField,
  SlotField,
  type Slots,
  StateWord,
  type Step,
} from "../../src/backends/backend.ts";
import {
  sideFields,
  statisticsLength,
  voteLanes,
} from "../../src/cache/layout.ts";
import { keepKV, type KeepKVOptions } from "../../src/policies/keep_kv.ts";
import type { Policy } from "../../src/policies/parts.ts";

/** A slot as a test writes and reads it. */
export interface TestSlot {
  key: Float32Array;
  value: Float32Array;
  position: number;
  tokens: number;
  /** ln votes, one per lane. */
  bias: number[];
  ema: number;
  accumulated: number;
  observations: number;
  /** Norm of the value, where a test needs it. */
  valueNorm?: number;
}

/** Sizes of a layer, of which tests of attention only choose the heads. */
export function layerSizes(
  { heads = 1, kvHeads = 1, headDim, hidden = 64 }: {
    heads?: number;
    kvHeads?: number;
    headDim: number;
    hidden?: number;
  },
): ModelSizes {
  const others = { ffn: 64, vocabulary: 32, normEpsilon: 1e-5 };
  return { ...others, hidden, heads, kvHeads, headDim };
}

/** Deterministic numbers in [0, 1): a linear congruential generator. */
export function randomNumbers(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 32;
  };
}

/** `length` normal numbers that 16-bit floats hold exactly. */
export function normalVector(
  random: () => number,
  length: number,
  scale = 1,
): Float32Array {
  return Float32Array.from({ length }, () => {
    const radius = Math.sqrt(-2 * Math.log(1 - random()));
    const value = scale * radius * Math.cos(2 * Math.PI * random());
    return new Float16Array([value])[0]!;
  });
}

/** A fresh slot with a random key and value. */
export function freshSlot(
  random: () => number,
  { headDim, lanes, position }: {
    headDim: number;
    lanes: number;
    position: number;
  },
): TestSlot {
  return {
    key: normalVector(random, headDim),
    value: normalVector(random, headDim),
    position,
    tokens: 1,
    bias: Array.from({ length: lanes }, () => 0),
    ema: 0,
    accumulated: 0,
    observations: 1,
  };
}

/** One layer with one sequence, on a backend. */
export class LayerHarness implements Disposable {
  readonly cache: CacheLayer<DeviceBuffer>;
  readonly lanes: number;
  readonly #backend: Backend;
  readonly #sizes: ModelSizes;
  readonly #policy: Policy;
  readonly #buffers: DeviceBuffer[] = [];

  /** Allocates `capacity` slots per head and a stage of `stageRows`. */
  constructor(
    backend: Backend,
    { sizes, policy, capacity, stageRows = 1 }: {
      sizes: ModelSizes;
      policy: Policy;
      capacity: number;
      stageRows?: number;
    },
  ) {
    this.#backend = backend;
    this.#sizes = sizes;
    this.#policy = policy;
    this.lanes = voteLanes(policy, sizes);
    const slots = (label: string, total: number): Slots<DeviceBuffer> => ({
      keys: this.allocate(`${label} keys`, "half", total * sizes.headDim),
      values: this.allocate(`${label} values`, "half", total * sizes.headDim),
      side: this.allocate(
        `${label} side`,
        "f32",
        total * sideFields(policy, sizes),
      ),
      total,
    });
    const statistics = statisticsLength(policy, { sizes, sequences: 1 });
    this.cache = {
      layer: 0,
      sequences: 1,
      lanes: this.lanes,
      maxCapacity: capacity,
      slots: slots("slots", capacity * sizes.kvHeads),
      stage: slots("stage", stageRows * sizes.kvHeads),
      stageRows,
      table: this.allocate("table", "u32", sizes.kvHeads * HeadWord.count),
      ...(statistics > 0 && {
        statistics: this.allocate("statistics", "f32", statistics),
      }),
    };
  }

  /** Allocates a buffer that lives as long as the harness. */
  allocate(
    label: string,
    type: "f32" | "u32" | "half",
    length: number,
  ): DeviceBuffer {
    const buffer = this.#backend.allocate(label, type, length);
    this.#buffers.push(buffer);
    return buffer;
  }

  /** Writes the slots of every head: `slots[kvHead]`, from index 0. */
  writeSlots(
    slots: readonly (readonly TestSlot[])[],
    { budget, recent, live }: { budget: number; recent: number; live: number },
  ): void {
    const { maxCapacity, table } = this.cache;
    const words = new Uint32Array(table.length);
    slots.forEach((_, kvHead) => {
      const at = kvHead * HeadWord.count;
      words[at + HeadWord.offset] = kvHead * maxCapacity;
      words[at + HeadWord.capacity] = maxCapacity;
      words[at + HeadWord.budget] = budget;
      words[at + HeadWord.recent] = recent;
      words[at + HeadWord.live] = live;
      words[at + HeadWord.next] = live;
      words[at + HeadWord.high] = live;
    });
    this.#backend.write(table, words);
    this.#write(this.cache.slots, slots, maxCapacity);
  }

  /** Writes a new token's slot where the only head takes the next one. */
  async append(slot: TestSlot): Promise<void> {
    const [index] = await this.readTable("next");
    const { keys, values, side, total } = this.cache.slots;
    const { headDim } = this.#sizes;
    this.#backend.write(keys, slot.key, index! * headDim);
    this.#backend.write(values, slot.value, index! * headDim);
    const fields = new Float32Array(SlotField.bias + this.lanes);
    const words = new Uint32Array(fields.buffer);
    fields[SlotField.ema] = slot.ema;
    fields[SlotField.accumulated] = slot.accumulated;
    words[SlotField.observations] = slot.observations;
    words[SlotField.position] = slot.position;
    words[SlotField.tokens] = slot.tokens;
    fields.set(slot.bias, SlotField.bias);
    words.forEach((word, field) =>
      this.#backend.write(side, Uint32Array.of(word), field * total + index!)
    );
  }

  /** Writes staged rows: `rows[kvHead]`. */
  writeStage(rows: readonly (readonly TestSlot[])[]): void {
    this.#write(this.cache.stage, rows, this.cache.stageRows);
  }

  #write(
    home: Slots<DeviceBuffer>,
    slots: readonly (readonly TestSlot[])[],
    perHead: number,
  ): void {
    const { headDim } = this.#sizes;
    const keys = new Float32Array(home.total * headDim);
    const values = new Float32Array(home.total * headDim);
    const f32 = new Float32Array(home.side.length);
    const u32 = new Uint32Array(f32.buffer);
    f32.fill(
      FREE_BIAS,
      SlotField.bias * home.total,
      partnerField(this.lanes) * home.total,
    );
    slots.forEach((head, kvHead) =>
      head.forEach((slot, i) => {
        const index = kvHead * perHead + i;
        keys.set(slot.key, index * headDim);
        values.set(slot.value, index * headDim);
        const at = (field: number) => field * home.total + index;
        f32[at(SlotField.ema)] = slot.ema;
        f32[at(SlotField.accumulated)] = slot.accumulated;
        u32[at(SlotField.observations)] = slot.observations;
        u32[at(SlotField.position)] = slot.position;
        u32[at(SlotField.tokens)] = slot.tokens;
        f32[at(SlotField.valueNorm)] = slot.valueNorm ?? 0;
        slot.bias.forEach((b, lane) => f32[at(SlotField.bias + lane)] = b);
      })
    );
    this.#backend.write(home.keys, keys);
    this.#backend.write(home.values, values);
    this.#backend.write(home.side, u32);
  }

  /** Reads the live slots of every head. */
  async readSlots(): Promise<TestSlot[][]> {
    const { slots, maxCapacity } = this.cache;
    const { headDim, kvHeads } = this.#sizes;
    const keys = (await this.#backend.read(slots.keys)).f32;
    const values = (await this.#backend.read(slots.values)).f32;
    const { f32, u32 } = await this.#backend.read(slots.side);
    return Array.from({ length: kvHeads }, (_, kvHead) => {
      const live: TestSlot[] = [];
      for (let i = 0; i < maxCapacity; i++) {
        const index = kvHead * maxCapacity + i;
        const at = (field: number) => field * slots.total + index;
        if (u32[at(SlotField.tokens)] === 0) continue;
        live.push({
          key: keys.slice(index * headDim, (index + 1) * headDim),
          value: values.slice(index * headDim, (index + 1) * headDim),
          position: u32[at(SlotField.position)]!,
          tokens: u32[at(SlotField.tokens)]!,
          bias: Array.from(
            { length: this.lanes },
            (_, lane) => f32[at(SlotField.bias + lane)]!,
          ),
          ema: f32[at(SlotField.ema)]!,
          accumulated: f32[at(SlotField.accumulated)]!,
          observations: u32[at(SlotField.observations)]!,
          valueNorm: f32[at(SlotField.valueNorm)]!,
        });
      }
      return live;
    });
  }

  /** Reads a word of every head's table. */
  async readTable(
    word: Exclude<keyof typeof HeadWord, "count">,
  ): Promise<number[]> {
    const { u32, f32 } = await this.#backend.read(this.cache.table);
    const isFloat = ["divergence", "threshold", "spread"].includes(word);
    const source = isFloat ? f32 : u32;
    return Array.from(
      { length: this.#sizes.kvHeads },
      (_, kvHead) => source[kvHead * HeadWord.count + HeadWord[word]]!,
    );
  }

  /** A decode step of one sequence at `position`. */
  decodeStep(position: number): Step<DeviceBuffer> {
    const state = this.allocate("state", "u32", StateWord.count);
    const words = new Uint32Array(StateWord.count);
    words[StateWord.position] = position;
    this.#backend.write(state, words);
    return this.#step("decode", 1, state);
  }

  /** A prefill step of `rows` rows from `position`. */
  prefillStep(position: number, rows: number): Step<DeviceBuffer> {
    const state = this.allocate("state", "u32", StateWord.count);
    const step = this.#step("prefill", this.cache.stageRows, state);
    const words = new Uint32Array(ChunkWord.count);
    words[ChunkWord.rows] = rows;
    words[ChunkWord.position] = position;
    this.#backend.write(step.chunk, words);
    return step;
  }

  #step(
    kind: "decode" | "prefill",
    rows: number,
    state: DeviceBuffer,
  ): Step<DeviceBuffer> {
    return {
      kind,
      rows,
      state,
      tokens: this.allocate("tokens", "u32", rows),
      chunk: this.allocate("chunk", "u32", ChunkWord.count),
    };
  }

  /** Runs `mergeAttend` once for queries `(heads, headDim)`. */
  async mergeAttend(
    queries: Float32Array,
    position: number,
  ): Promise<Float32Array> {
    const buffer = this.allocate("queries", "f32", queries.length);
    const output = this.allocate("output", "f32", queries.length);
    this.#backend.write(buffer, queries);
    const step = this.decodeStep(position);
    using program = this.#backend.record(
      "merge_attend",
      (kernels) =>
        kernels.mergeAttend({
          output,
          queries: buffer,
          cache: this.cache,
          step,
          sizes: this.#sizes,
          policy: this.#policy,
        }),
    );
    program.run();
    return (await this.#backend.read(output)).f32;
  }

  /**
   * Runs `prefillAttend`, `observe` and `compress` for a chunk whose keys and
   * values are staged; returns the output of its rows.
   */
  async readChunk(
    queries: Float32Array,
    { position, rows }: { position: number; rows: number },
  ): Promise<Float32Array> {
    const { heads, headDim } = this.#sizes;
    const length = this.cache.stageRows * heads * headDim;
    const buffer = this.allocate("queries", "f32", length);
    const output = this.allocate("output", "f32", length);
    const logSums = this.allocate(
      "log sums",
      "f32",
      this.cache.stageRows * heads,
    );
    this.#backend.write(buffer, queries);
    const step = this.prefillStep(position, rows);
    using program = this.#backend.record("chunk", (kernels) => {
      const args = {
        queries: buffer,
        logSums,
        cache: this.cache,
        step,
        sizes: this.#sizes,
        policy: this.#policy,
      };
      kernels.prefillAttend({ output, ...args });
      if (this.#policy.probe.kind !== "none") kernels.observe(args);
      kernels.compress(args);
    });
    program.run();
    const { f32 } = await this.#backend.read(output, 0, rows * heads * headDim);
    return f32;
  }

  /** Frees the buffers. */
  [Symbol.dispose](): void {
    for (const buffer of this.#buffers) buffer[Symbol.dispose]();
  }
}

/** Attention of one query over voted slots in 64-bit floats. */
export function exactAttention(
  query: ArrayLike<number>,
  slots: readonly TestSlot[],
  lane = 0,
): { output: Float64Array; weights: number[] } {
  const headDim = slots[0]!.key.length;
  const logits = slots.map(({ key, bias }) => {
    let sum = 0;
    for (let i = 0; i < headDim; i++) sum += query[i]! * key[i]!;
    return sum / Math.sqrt(headDim) + bias[lane % bias.length]!;
  });
  const max = Math.max(...logits);
  const total = logits.reduce((sum, l) => sum + Math.exp(l - max), 0);
  const weights = logits.map((l) => Math.exp(l - max) / total);
  const output = new Float64Array(headDim);
  slots.forEach(({ value }, s) => {
    for (let i = 0; i < headDim; i++) output[i]! += weights[s]! * value[i]!;
  });
  return { output, weights };
}

/** Euclidean distance between two vectors over the length of the second. */
export function relativeError(
  actual: ArrayLike<number>,
  expected: ArrayLike<number>,
): number {
  let [difference, norm] = [0, 0];
  for (let i = 0; i < expected.length; i++) {
    difference += (actual[i]! - expected[i]!) ** 2;
    norm += expected[i]! ** 2;
  }
  return Math.sqrt(difference / norm);
}

/** KeepKV whose scores are those of the current step alone. */
export function instantKeepKV(options: Partial<KeepKVOptions>): Policy {
  return keepKV({
    budget: 16,
    alpha: 0,
    window: 1,
    // Every victim finds a target, and any scale of a ZIP key is accepted:
    // the identities hold for all of them.
    threshold: -1,
    sinks: 0,
    guard: [1e-6, 1e6],
    ...options,
  });
}

/**
 * Largest relative change of an output that storing keys and values as 16-bit
 * floats may cause. A rounded key moves a logit by at most `2^-11 Σ|qᵢ kᵢ| / √d`,
 * at most `e`, so each weight by a factor within `exp(±2e)`; a rounded value
 * moves the output by at most `2^-11` of its size.
 */
export function halfBound(
  query: Float32Array,
  slots: readonly TestSlot[],
): number {
  const root = Math.sqrt(query.length);
  const logit = Math.max(
    ...slots.map(({ key }) =>
      key.reduce((sum, k, i) => sum + Math.abs(k * query[i]!), 0)
    ),
  ) / root * 2 ** -11;
  const size = Math.max(...slots.map(({ value }) => Math.hypot(...value)));
  const output = Math.hypot(...exactAttention(query, slots).output);
  return (Math.expm1(2 * logit) * 2 + 2 ** -11) * size / output;
}

/** What a merge may change: 1e-5 in f32, the storage's rounding in f16. */
export function mergeTolerance(
  backend: Backend,
  query: Float32Array,
  slots: readonly TestSlot[],
): number {
  return backend.halfBytes === 4 ? 1e-5 : 1e-5 + halfBound(query, slots);
}
