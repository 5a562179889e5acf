import { definePolicy, type MethodOptions } from "./define_policy.ts";
import type { Policy } from "./parts.ts";

/** Options of {@link streamingLlm}. */
export interface StreamingLlmOptions extends MethodOptions {
  /** First tokens of the text that are never evicted (default 4). */
  readonly sinks?: number;
  /**
   * Positions that sinks have for later tokens (default `"cache"`, as in the
   * paper). Between the recent tokens the two do not differ.
   */
  readonly sinkPositions?: "text" | "cache";
}

/**
 * StreamingLLM: keeps the first tokens of the text, the attention sinks, and
 * the newest ones; the others are dropped.
 *
 * Positions are those of the place in the cache: the sinks stay as near to the
 * recent tokens as they are in the cache, however long the text.
 *
 * Source: "Efficient Streaming Language Models with Attention Sinks", arXiv
 * 2309.17453, section 3.2.
 */
export function streamingLlm(options: StreamingLlmOptions): Policy {
  return definePolicy({
    name: "streaming-llm",
    budget: options.budget,
    probe: { kind: "none" },
    score: { kind: "position" },
    allocate: options.allocate,
    select: {
      sinks: options.sinks ?? 4,
      sinkPositions: options.sinkPositions ?? "cache",
      recent: { slots: 1 },
    },
    merge: { kind: "drop" },
    schedule: options.schedule,
  });
}
