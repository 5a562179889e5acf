import { definePolicy, type MethodOptions } from "./define_policy.ts";
import type { Policy } from "./parts.ts";

/** Options of {@link tova}. */
export type TovaOptions = MethodOptions;

/**
 * TOVA: at every step the token goes that the newest token attends to least.
 *
 * The score of a token is its weight in the newest row, as a mean over all
 * heads of the layer, which all evict the same token. Nothing is protected:
 * sinks stay because they are attended to, and the newest token itself may go.
 *
 * Source: "Transformers are Multi-State RNNs", arXiv 2401.06104. A chunk of a
 * prompt is compressed by its last row.
 */
export function tova(options: TovaOptions): Policy {
  return definePolicy({
    name: "tova",
    budget: options.budget,
    probe: { kind: "last", rows: 1 },
    score: { kind: "last" },
    allocate: options.allocate,
    select: { sinks: 0, recent: { slots: 0 }, scope: "layer" },
    merge: { kind: "drop" },
    schedule: options.schedule,
  });
}
