import { adaKV, type AdaKVOptions } from "./ada_kv.ts";
import { criticalKV, type CriticalValues } from "./critical_kv.ts";
import type { Policy } from "./parts.ts";

/** Options of {@link criticalAdaKV}. */
export type CriticalAdaKVOptions = AdaKVOptions & CriticalValues;

/**
 * CriticalAdaKV: the heads of a layer share its budget by their scores, as in
 * {@link adaKV}, and each head then evicts what moves the output least, as in
 * {@link criticalKV}.
 *
 * Head `h` gets its budget `b` by the attention of its tokens alone; the
 * `⌊first · b⌋` tokens with the highest attention stay, and of the others those
 * with the lowest `(A + ε) · u` go, `u` being the norm of the projected value.
 *
 * Source: "Identify Critical KV Cache in LLM Inference from an Output
 * Perturbation Perspective", arXiv 2502.03805, algorithm 1 on top of Ada-KV,
 * arXiv 2407.11550. The authors' code gives each head its best fifth of the
 * even budget before it counts the others; here the floor of Ada-KV does that.
 *
 * @example
 * ```ts
 * import { criticalAdaKV } from "@steadykv/steadykv";
 * import { assertEquals } from "@std/assert";
 *
 * const { allocate, values } = criticalAdaKV({ budget: 128 });
 * assertEquals([allocate.heads.kind, values.kind], ["adaptive", "norm"]);
 * ```
 */
export function criticalAdaKV(
  { first, epsilon, of, ...options }: CriticalAdaKVOptions,
): Policy {
  return {
    ...criticalKV({
      base: adaKV(options),
      ...(first !== undefined && { first }),
      ...(epsilon !== undefined && { epsilon }),
      ...(of !== undefined && { of }),
    }),
    name: "criticaladakv",
  };
}
