/**
 * The slot cache of a model: buffers on the device that never grow.
 *
 * @module
 */
import {
  type Backend,
  type CacheLayer,
  type DeviceBuffer,
  FREE_BIAS,
  HeadWord,
  SlotField,
  type Slots,
} from "../backends/backend.ts";
import { checkPrecision } from "../backends/check_precision.ts";
import type { Policy } from "../policies/parts.ts";
import { largestCapacity } from "./adaptive_heads.ts";
import {
  type BudgetOptions,
  type HeadBudget,
  resolveBudget,
} from "./budget.ts";
import {
  initialTable,
  layerSlots,
  sideFields,
  statisticsLength,
  voteLanes,
} from "./layout.ts";

/** What a cache has done and what it holds. Slots are averaged over heads. */
export interface CacheStats {
  /** Bytes that the device holds: slots, stage, head table, statistics. */
  readonly bytes: number;
  /** Mean budget in slots per KV head and layer. */
  readonly budgetSlots: number;
  /** Mean live slots per KV head and layer. */
  readonly liveSlots: number;
  /** Slots merged into another, over all heads. */
  readonly merges: number;
  /** Slots dropped, over all heads. */
  readonly drops: number;
  /** Tokens that the dropped slots stood for, over all heads. */
  readonly droppedTokens: number;
  /** ZIP merges whose scale was unsafe, over all heads. */
  readonly guardedMerges: number;
  /** Mean KL divergence between merge weights and vote shares. */
  readonly meanDivergence: number;
}

/** Fixed memory for the keys and values of one or more sequences. */
export class SlotCache implements Disposable {
  /** The layers, as kernels take them. */
  readonly layers: readonly CacheLayer<DeviceBuffer>[];
  /** `(layers, kvHeads)` budgets while the cache is empty. */
  readonly budgets: readonly (readonly HeadBudget[])[];
  readonly #backend: Backend;
  readonly #sequences: number;
  readonly #table: DeviceBuffer;
  readonly #buffers: DeviceBuffer[] = [];

  /**
   * Allocates the cache.
   *
   * @throws {TypeError} If the backend has not the policy's precision.
   * @throws {RangeError} If the budget does not suit the policy or the model.
   */
  constructor(
    backend: Backend,
    policy: Policy,
    options: Omit<BudgetOptions, "halfBytes">,
  ) {
    const { sizes, sequences, stageRows } = options;
    checkPrecision(policy, backend);
    this.#backend = backend;
    this.#sequences = sequences;
    this.budgets = resolveBudget(policy, {
      ...options,
      halfBytes: backend.halfBytes,
    });
    const lanes = voteLanes(policy, sizes);
    const slots = (label: string, total: number): Slots<DeviceBuffer> => ({
      keys: this.#allocate(`${label} keys`, "half", total * sizes.headDim),
      values: this.#allocate(`${label} values`, "half", total * sizes.headDim),
      side: this.#allocate(
        `${label} side fields`,
        "f32",
        total * sideFields(policy, sizes),
      ),
      total,
    });
    try {
      const table = initialTable(this.budgets, sequences);
      this.#table = this.#allocate("head table", "u32", table.length);
      const stage = slots("stage", stageRows * sizes.kvHeads);
      const statistics = statisticsLength(policy, options);
      this.layers = this.budgets.map((heads, layer) => ({
        layer,
        sequences,
        lanes,
        maxCapacity: largestCapacity(heads, policy, stageRows),
        slots: slots(`layer ${layer}`, layerSlots(heads, sequences)),
        stage,
        stageRows,
        table: this.#table,
        ...(statistics > 0 && {
          statistics: this.#allocate(
            `layer ${layer} query statistics`,
            "f32",
            statistics,
          ),
        }),
      }));
    } catch (error) {
      this[Symbol.dispose]();
      throw error;
    }
    this.reset();
  }

  #allocate(
    label: string,
    type: "half" | "f32" | "u32",
    length: number,
  ): DeviceBuffer {
    const buffer = this.#backend.allocate(`cache ${label}`, type, length);
    this.#buffers.push(buffer);
    return buffer;
  }

  /** Bytes that the device holds for the cache. */
  get bytes(): number {
    return this.#buffers.reduce((sum, { byteLength }) => sum + byteLength, 0);
  }

  /** Tokens that the smallest head has room for. */
  get capacity(): number {
    return Math.min(...this.budgets.flat().map(({ capacity }) => capacity));
  }

  /** Frees all slots of all sequences, and forgets their queries. */
  reset(): void {
    this.#backend.write(
      this.#table,
      initialTable(this.budgets, this.#sequences),
    );
    for (const { slots, lanes, statistics } of this.layers) {
      const side = new Float32Array(slots.side.length);
      const [from, to] = [SlotField.bias, SlotField.bias + lanes];
      side.fill(FREE_BIAS, from * slots.total, to * slots.total);
      this.#backend.write(slots.side, side);
      if (statistics !== undefined) {
        this.#backend.write(statistics, new Float32Array(statistics.length));
      }
    }
  }

  /** Reads the head table and sums it up. */
  async stats(): Promise<CacheStats> {
    const { u32, f32 } = await this.#backend.read(this.#table);
    const heads = u32.length / HeadWord.count;
    const sum = (word: number, source: ArrayLike<number> = u32) => {
      let total = 0;
      for (let i = 0; i < heads; i++) {
        total += source[i * HeadWord.count + word]!;
      }
      return total;
    };
    const merges = sum(HeadWord.merged);
    return {
      bytes: this.bytes,
      budgetSlots: sum(HeadWord.budget) / heads,
      liveSlots: sum(HeadWord.live) / heads,
      merges,
      drops: sum(HeadWord.dropped),
      droppedTokens: sum(HeadWord.droppedTokens),
      guardedMerges: sum(HeadWord.guarded),
      meanDivergence: merges === 0 ? 0 : sum(HeadWord.divergence, f32) / merges,
    };
  }

  /** Frees the device memory. */
  [Symbol.dispose](): void {
    for (const buffer of this.#buffers) buffer[Symbol.dispose]();
    this.#buffers.length = 0;
  }
}
