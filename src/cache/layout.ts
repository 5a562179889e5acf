/**
 * Where the slots of a cache are, and what they weigh.
 *
 * The layout is ragged: each (layer, sequence, KV head) owns a run of slots of
 * its own length in the buffers of its layer.
 *
 * @module
 */
import {
  HeadWord,
  type ModelSizes,
  PartnerField,
  queryStatisticsLayout,
  SlotField,
} from "../backends/backend.ts";
import type { Policy } from "../policies/parts.ts";
import type { HeadBudget } from "./budget.ts";

/** Sizes that a layout follows from, beside the budgets. */
export interface LayoutOptions {
  readonly sizes: ModelSizes;
  readonly sequences: number;
  /** Rows of the prefill stage. */
  readonly stageRows: number;
  /** Bytes of one stored key or value element. */
  readonly halfBytes: number;
}

/** Vote biases that a policy keeps per slot. */
export function voteLanes({ merge }: Policy, sizes: ModelSizes): number {
  return "votesPerQueryHead" in merge && merge.votesPerQueryHead
    ? sizes.heads / sizes.kvHeads
    : 1;
}

/** Whether the slots of a policy remember partners: see `PartnerField`. */
export function remembersPartners({ merge }: Policy): boolean {
  return merge.kind === "pair" && merge.search === "incremental";
}

/** Fields that a slot has beside its key and value. */
export function sideFields(policy: Policy, sizes: ModelSizes): number {
  return SlotField.bias + voteLanes(policy, sizes) +
    (remembersPartners(policy) ? PartnerField.count : 0);
}

/** Floats of a layer's query statistics; 0 where the policy needs none. */
export function statisticsLength(
  { score }: Policy,
  { sizes, sequences }: Pick<LayoutOptions, "sizes" | "sequences">,
): number {
  if (score.kind !== "expected") return 0;
  const { length } = queryStatisticsLayout(sizes.headDim);
  return sequences * sizes.heads * length;
}

/** Slots of one layer over all sequences and heads. */
export function layerSlots(
  budgets: readonly HeadBudget[],
  sequences: number,
): number {
  return sequences * budgets.reduce((sum, { capacity }) => sum + capacity, 0);
}

/** Bytes of one slot: key, value and the fields beside them. */
export function slotBytes(
  policy: Policy,
  { sizes, halfBytes }: LayoutOptions,
): number {
  return 2 * sizes.headDim * halfBytes + 4 * sideFields(policy, sizes);
}

/**
 * Bytes that a cache with these budgets takes: slots, stage, head table and
 * query statistics.
 */
export function cacheBytes(
  budgets: readonly (readonly HeadBudget[])[],
  policy: Policy,
  options: LayoutOptions,
): number {
  const { sizes, sequences, stageRows } = options;
  const slots = budgets.reduce(
    (sum, layer) => sum + layerSlots(layer, sequences),
    stageRows * sizes.kvHeads,
  );
  const heads = budgets.length * sequences * sizes.kvHeads;
  return slots * slotBytes(policy, options) + heads * HeadWord.count * 4 +
    budgets.length * statisticsLength(policy, options) * 4;
}

/**
 * The head table of an empty cache, `(layers, sequences, kvHeads,
 * HeadWord.count)`.
 */
export function initialTable(
  budgets: readonly (readonly HeadBudget[])[],
  sequences: number,
): Uint32Array {
  const kvHeads = budgets[0]!.length;
  const table = new Uint32Array(
    budgets.length * sequences * kvHeads * HeadWord.count,
  );
  budgets.forEach((layer, l) => {
    let offset = 0;
    for (let sequence = 0; sequence < sequences; sequence++) {
      layer.forEach(({ slots, recent, capacity }, kvHead) => {
        const at = ((l * sequences + sequence) * kvHeads + kvHead) *
          HeadWord.count;
        table[at + HeadWord.offset] = offset;
        table[at + HeadWord.capacity] = capacity;
        table[at + HeadWord.budget] = slots;
        table[at + HeadWord.recent] = recent;
        offset += capacity;
      });
    }
  });
  return table;
}
