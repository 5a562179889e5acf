/**
 * Compares what a kernel left in a cache with what the reference left.
 *
 * @module
 */
import { assertEquals } from "@std/assert";
import {
  HeadWord,
  type ModelSizes,
  PartnerField,
  partnerField,
  SlotField,
} from "../../src/backends/backend.ts";
import type { Outcome } from "./scene.ts";
import {
  assertWithin,
  storedError,
  type StoredType,
  sumError,
} from "./tolerance.ts";

/** How far slots may be apart. */
export interface SlotBounds {
  /** Of `ema`, where slots were observed. */
  readonly ema: number;
  /** Of `accumulated`. */
  readonly accumulated: number;
  /** Of vote biases. */
  readonly bias: number;
  /** Of elements of keys and values, beside what storing them rounds. */
  readonly key: number;
  readonly value: number;
  /** Of the divergence of one merge. */
  readonly divergence: number;
  /** How often a key or value may have been rounded to be stored. */
  readonly roundings: number;
}

/** Asserts that the caches of two outcomes hold the same. */
export function assertSameCache(
  actual: Outcome,
  expected: Outcome,
  { sizes, lanes, total, bounds, stored, scored, partners }: {
    sizes: ModelSizes;
    lanes: number;
    total: number;
    bounds: SlotBounds;
    /** What keys and values are stored as. */
    stored: StoredType;
    /** Whether scores are kept at all. */
    scored: boolean;
    /** Whether slots remember a partner. */
    partners: boolean;
  },
): void {
  const { headDim } = sizes;
  // The mean value, the squared distances from it and their sum.
  const spreadError = 3 * sumError(total + headDim, 1);
  // Two sums of squared differences, each rounded twice, and their weights.
  const distanceError = 2 * sumError(headDim + 4, 1) + spreadError;
  const words = expected.table!.u32.length;
  for (let at = 0; at < words; at += HeadWord.count) {
    const row = (outcome: Outcome) =>
      Array.from(outcome.table!.u32.subarray(at, at + HeadWord.divergence));
    assertEquals(row(actual), row(expected), `head table from word ${at}`);
    // A mean of cosines, sums of headDim products over as many slots.
    const threshold = at + HeadWord.threshold;
    assertWithin(
      [actual.table!.f32[threshold]!],
      [expected.table!.f32[threshold]!],
      { bound: sumError(headDim + 256, 1), what: "threshold" },
    );
    const spread = expected.table!.f32[at + HeadWord.spread]!;
    assertWithin([actual.table!.f32[at + HeadWord.spread]!], [spread], {
      bound: spreadError * spread,
      what: "spread",
    });
    const divergence = at + HeadWord.divergence;
    assertWithin(
      [actual.table!.f32[divergence]!],
      [expected.table!.f32[divergence]!],
      {
        bound: bounds.divergence *
          expected.table!.u32[at + HeadWord.merged]!,
        what: "divergence",
      },
    );
  }
  const word = (outcome: Outcome, field: number, slot: number) =>
    outcome.side!.u32[field * total + slot]!;
  const float = (outcome: Outcome, field: number, slot: number) =>
    outcome.side!.f32[field * total + slot]!;
  for (let slot = 0; slot < total; slot++) {
    const what = `of slot ${slot}`;
    const tokens = word(expected, SlotField.tokens, slot);
    assertEquals(
      word(actual, SlotField.tokens, slot),
      tokens,
      `tokens ${what}`,
    );
    if (partners) {
      const field = partnerField(lanes);
      assertEquals(
        word(actual, field + PartnerField.slot, slot),
        word(expected, field + PartnerField.slot, slot),
        `partner ${what}`,
      );
      const distance = float(expected, field + PartnerField.distance, slot);
      assertWithin(
        [float(actual, field + PartnerField.distance, slot)],
        [distance],
        { bound: distanceError * distance, what: `distance ${what}` },
      );
    }
    if (tokens === 0) continue;
    for (const field of [SlotField.position, SlotField.observations]) {
      if (field === SlotField.observations && !scored) continue;
      assertEquals(
        word(actual, field, slot),
        word(expected, field, slot),
        `word ${field} ${what}`,
      );
    }
    const near = (field: number, bound: number) =>
      assertWithin([float(actual, field, slot)], [
        float(expected, field, slot),
      ], { bound, what: `field ${field} ${what}` });
    if (scored) {
      near(
        SlotField.ema,
        word(expected, SlotField.observations, slot) === 0 ? 0 : bounds.ema,
      );
      near(SlotField.accumulated, bounds.accumulated);
    }
    near(SlotField.valueNorm, bounds.value);
    for (let lane = 0; lane < lanes; lane++) {
      near(SlotField.bias + lane, bounds.bias);
    }
    for (
      const [name, bound] of [["keys", bounds.key], [
        "values",
        bounds.value,
      ]] as const
    ) {
      const vector = (outcome: Outcome) =>
        outcome[name]!.f32.subarray(slot * headDim, (slot + 1) * headDim);
      const reference = vector(expected);
      assertWithin(vector(actual), reference, {
        what: `${name} ${what}`,
        // Where nothing may change, nothing is rounded either.
        bound: (i) =>
          bound === 0
            ? 0
            : bound + bounds.roundings * storedError(reference[i]!, stored),
      });
    }
  }
}
