import type { Policy, Values } from "./parts.ts";
import { snapKV, type SnapKVOptions } from "./snap_kv.ts";

/** How {@link criticalKV} counts values. */
export interface CriticalValues {
  /** Share of the budget that goes by scores alone (default 0.5). */
  readonly first?: number;
  /** Score that is added to every slot's before values count (default 1e-4). */
  readonly epsilon?: number;
  /** Which norm counts (default `"projected"`, the paper's). */
  readonly of?: Extract<Values, { kind: "norm" }>["of"];
}

/** Options of {@link criticalKV}: a policy to select for, or SnapKV's. */
export type CriticalKVOptions =
  & CriticalValues
  & (({ readonly base: Policy }) | SnapKVOptions & { readonly base?: never });

/**
 * CriticalKV: what goes is what moves the output least, and that hangs on the
 * values as much as on the attention.
 *
 * Evicting slots changes the output of a head after its projection, `o W_O`,
 * by at most `θ = C − (2 − 1/σ) Σ Aᵢ uᵢ` in L1, where the sum is over the slots
 * that stay, `σ` is their attention, `uᵢ = ‖vᵢ W_O‖₁` and `C` is `Σ Aᵢ uᵢ` over
 * all slots. Two stages keep this low: the first share of the budget goes to
 * the highest `A`, which brings `σ` above a half, the rest to the highest
 * `(A + ε) u`.
 *
 * The second stage is the best for `θ` with the `σ` of the first stage. It also
 * lowers `σ`, since a slot with more attention goes for one with a larger
 * value, so `θ` itself falls only where `σ` is near 1 already: evicting `e`
 * moves the output by `Aₑ / (1 − Aₑ) · ‖(o − vₑ) W_O‖₁`, which is `Aₑ uₑ` where
 * `o` is small. That is so in models that leave much of their attention on a
 * token with hardly any value. Without such a token the rule gains nothing;
 * with one it gains the more the norms of values differ. Where `σ` is below a
 * half it picks the worst slots for `θ`.
 *
 * It changes which slots a policy evicts and nothing else, so it goes on top
 * of any policy that scores attention: `base`, SnapKV unless told otherwise.
 *
 * Source: "Identify Critical KV Cache in LLM Inference from an Output
 * Perturbation Perspective", arXiv 2502.03805, theorem 3.3 and algorithm 1;
 * 0.5, 1e-4 and the mean over the heads of a group follow the authors' code.
 * The paper compresses a prompt once. Here the same rule goes on while
 * decoding, with norms that are worked out when a token is appended; a merged
 * slot has the mean of its members' norms, weighted like their values, which
 * its own norm does not exceed.
 *
 * @throws {TypeError} Not here, but where the policy is used: if the base
 * ranks by position, or merges values by the exact rule.
 *
 * @example
 * ```ts
 * import { criticalKV, h2o } from "@steadykv/steadykv";
 * import { assertEquals } from "@std/assert";
 *
 * assertEquals(criticalKV({ budget: 256 }).name, "criticalkv");
 * const policy = criticalKV({ base: h2o({ budget: 256 }), first: 0.25 });
 * assertEquals(policy.name, "critical-h2o");
 * ```
 */
export function criticalKV(options: CriticalKVOptions): Policy {
  const { base, first, epsilon, of, ...rest } = options;
  const values: Values = {
    kind: "norm",
    of: of ?? "projected",
    first: first ?? 0.5,
    power: 1,
    epsilon: epsilon ?? 1e-4,
  };
  return base === undefined
    ? { ...snapKV(rest as SnapKVOptions), name: "criticalkv", values }
    : { ...base, name: `critical-${base.name}`, values };
}
