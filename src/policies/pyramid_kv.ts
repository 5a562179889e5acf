import type { Policy } from "./parts.ts";
import { snapKV, type SnapKVOptions } from "./snap_kv.ts";

/** Options of {@link pyramidKV}. */
export interface PyramidKVOptions extends SnapKVOptions {
  /**
   * What the mean part beside the window is divided by in the last layer
   * (default 20, as in the authors' code).
   */
  readonly beta?: number;
}

/**
 * PyramidKV: SnapKV with more slots in the first layers, whose attention is
 * spread out, and fewer in the last, where few tokens take it all.
 *
 * Beside the window of `w` rows, which is the same everywhere, layer `l` of `L`
 * has `B_l = max − l (max − min) / (L − 1)` slots with `min = (B − w) / beta` and
 * `max = 2 (B − w) − min`, so the mean is `B`.
 *
 * Source: "PyramidKV: Dynamic KV Cache Compression based on Pyramidal
 * Information Funneling", arXiv 2406.02069. There `max` is cut at the length of
 * the prompt; a budget here is fixed before there is a prompt, so the first
 * layers may have slots that a short text does not fill.
 */
export function pyramidKV(options: PyramidKVOptions): Policy {
  return {
    ...snapKV({
      ...options,
      allocate: {
        layers: { kind: "linear", beta: options.beta ?? 20 },
        ...options.allocate,
      },
    }),
    name: "pyramidkv",
  };
}
