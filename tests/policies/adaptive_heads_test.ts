import { assert, assertEquals } from "@std/assert";
import {
  type CacheLayer,
  HeadWord,
  type HostTensor,
  SlotField,
  type Slots,
} from "../../src/backends/backend.ts";
import { h2o } from "../../src/policies/h2o.ts";
import { allocateHeads } from "../../src/reference/allocate_heads.ts";
import { HeadView, hostTensor } from "../../src/reference/host.ts";
import { rateLayer } from "../../src/reference/selection.ts";
import { randomNumbers } from "./layer_harness.ts";

interface Options {
  readonly budget: number;
  readonly floor: number;
  readonly sinks?: number;
  readonly recent?: number;
}

/** Budgets that heads get whose staged rows have these accumulated scores. */
function allocate(
  scores: readonly (readonly number[])[],
  { budget, floor, sinks = 0, recent = 0 }: Options,
): number[] {
  const kvHeads = scores.length;
  const rows = scores[0]!.length;
  const side = hostTensor((SlotField.bias + 1) * kvHeads * rows);
  scores.flat().forEach((score, i) => {
    side.f32[SlotField.accumulated * kvHeads * rows + i] = score;
    side.u32[SlotField.position * kvHeads * rows + i] = i % rows;
  });
  const empty = hostTensor(0);
  const total = kvHeads * rows;
  const stage: Slots<HostTensor> = { keys: empty, values: empty, side, total };
  const table = hostTensor(kvHeads * HeadWord.count);
  for (let h = 0; h < kvHeads; h++) {
    const row = table.u32.subarray(h * HeadWord.count);
    row[HeadWord.offset] = h * (budget + 1);
    row[HeadWord.capacity] = budget + 1;
    row[HeadWord.budget] = budget;
    row[HeadWord.recent] = recent;
  }
  const policy = h2o({
    budget,
    sinks,
    allocate: { heads: { kind: "adaptive", floor } },
  });
  const cache: CacheLayer<HostTensor> = {
    layer: 0,
    sequences: 1,
    lanes: 1,
    maxCapacity: kvHeads * (budget + 1),
    slots: { ...stage, side: empty, total: 0 },
    stage,
    stageRows: rows,
    table,
  };
  const newest = rows - 1;
  const heads = scores.map((_, kvHead) => {
    const head = new HeadView(cache, { sequence: 0, kvHead, kvHeads });
    const slots = scores[0]!.map((_, row) => head.staged(row));
    return { head, slots, recent, newest, policy };
  });
  const { pool } = policy.select;
  allocateHeads(
    heads,
    rateLayer(heads, { policy, lanes: 1, headDim: 0, newest, pool }),
  );
  return scores.map((_, h) => table.u32[h * HeadWord.count + HeadWord.budget]!);
}

/** Head 0 has the five highest of all, head 1 the next one. */
const toy = [
  [9, 1, 8, 7, 1, 6, 5, 1],
  [2, 2, 4, 1, 1, 1, 1, 1],
];

Deno.test("Ada-KV gives a head as many slots as it has of the highest scores", () => {
  assertEquals(allocate(toy, { budget: 3, floor: 0 }), [4, 2]);
  assertEquals(allocate(toy, { budget: 4, floor: 0.25 }), [5, 3]);
});

Deno.test("Ada-KV's floor moves budgets towards even ones", () => {
  const many = [Array.from({ length: 30 }, () => 2), Array(30).fill(1)];
  // All 20 counted rows are of head 0: (1 − f) · 20 + f · 10.
  assertEquals(allocate(many, { budget: 10, floor: 0.2 }), [18, 2]);
  assertEquals(allocate(many, { budget: 10, floor: 0.5 }), [15, 5]);
  assertEquals(allocate(many, { budget: 10, floor: 1 }), [10, 10]);
  // Without a floor a head still keeps one slot: (1 − 1/10) · 20 + 1/10 · 10.
  assertEquals(allocate(many, { budget: 10, floor: 0 }), [19, 1]);
});

Deno.test("Ada-KV leaves sinks and recent tokens out of the count", () => {
  // The high scores of head 1 are protected and claim nothing.
  const scores = [
    [0, 5, 5, 5, 5, 5, 0, 0],
    [9, 1, 1, 1, 1, 1, 9, 9],
  ];
  const budgets = allocate(scores, {
    budget: 5,
    floor: 0,
    sinks: 1,
    recent: 2,
  });
  // Head 0 claims all four free slots; a floor of 1/2 leaves one to head 1.
  assertEquals(budgets, [6, 4]);
});

Deno.test("Ada-KV gives ties to the first head", () => {
  const same = Array.from({ length: 3 }, () => Array(9).fill(1));
  assertEquals(allocate(same, { budget: 4, floor: 0.5 }), [7, 3, 2]);
});

Deno.test("Ada-KV retains at least the attention that even budgets do", () => {
  const random = randomNumbers(5);
  for (let trial = 0; trial < 40; trial++) {
    const scores = Array.from({ length: 4 }, () => {
      const sharpness = 1 + 9 * random();
      return Array.from({ length: 40 }, () => random() ** sharpness);
    });
    const retained = (budgets: readonly number[]) =>
      scores.reduce((sum, head, h) => {
        const best = head.toSorted((a, b) => b - a).slice(0, budgets[h]!);
        return sum + best.reduce((a, b) => a + b);
      }, 0);
    const budgets = allocate(scores, { budget: 10, floor: 0 });
    assertEquals(budgets.reduce((a, b) => a + b), 40);
    assert(retained(budgets) >= retained([10, 10, 10, 10]));
  }
});
