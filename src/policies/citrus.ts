import { definePolicy, type MethodOptions } from "./define_policy.ts";
import type { Policy } from "./parts.ts";

/** Options of {@link citrus}. */
export interface CitrusOptions extends MethodOptions {
  /** Ids of the instruction, at least one: what the text is read for. */
  readonly instruction: readonly number[];
  /** Newest tokens never evicted, as a share of the budget (default 0.25). */
  readonly recent?: number;
  /** First tokens of the text that are never evicted (default 0). */
  readonly sinks?: number;
}

/**
 * CItruS: a long text is read chunk by chunk for an instruction that is known
 * beforehand, and what the instruction attends to is kept.
 *
 * After each chunk the tokens of the instruction are read too, see the cache
 * and the chunk, and are forgotten again. A slot's score is the mean of the
 * attention weights that it got from them; the slots with the highest scores
 * stay, and the newest tokens.
 *
 * Source: "CItruS: Chunked Instruction-aware State Eviction for Long Sequence
 * Modeling", arXiv 2406.12018: the variant with one cache, in chunks of 256
 * tokens, the newest of which stays beside 768 others, hence a recent quarter.
 * The released code scores a slot by the last chunk's reading alone, over all
 * heads of a layer, and numbers positions anew. Here the mean is over all
 * readings that saw the slot, and over decode steps once text is generated;
 * each KV head chooses for itself; and positions are those of the text.
 *
 * It needs ids beside a budget, so the registry does not have it.
 *
 * @example
 * ```ts
 * import { citrus } from "@steadykv/steadykv";
 * import { assertEquals } from "@std/assert";
 *
 * const policy = citrus({ budget: 256, instruction: [17, 4, 99] });
 * assertEquals(policy.probe, { kind: "instruction", tokens: [17, 4, 99] });
 * ```
 */
export function citrus(options: CitrusOptions): Policy {
  return definePolicy({
    name: "citrus",
    budget: options.budget,
    probe: { kind: "instruction", tokens: options.instruction },
    score: { kind: "mean" },
    allocate: options.allocate,
    select: {
      sinks: options.sinks ?? 0,
      recent: { ratio: options.recent ?? 0.25 },
    },
    merge: { kind: "drop" },
    schedule: options.schedule,
  });
}
