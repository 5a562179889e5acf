/**
 * SteadyKV generates text with open language models in fixed memory: the cache
 * of keys and values never grows past a budget, and what no longer fits is
 * merged, not thrown away.
 *
 * Importing this module does nothing: no file, network, adapter or native
 * library is touched before {@linkcode Generator.load}.
 *
 * @example
 * ```ts ignore
 * import { Generator, steady } from "@steadykv/steadykv";
 *
 * await using generator = await Generator.load("examples/models/docs-7m", {
 *   cache: steady({ budget: 256 }),
 * });
 * for await (const { text } of generator.generate("The SELECT statement")) {
 *   await Deno.stdout.write(new TextEncoder().encode(text));
 * }
 * ```
 *
 * @module
 */
export * from "./src/errors.ts";
export { Generator } from "./src/generate/generator.ts";
export type {
  BatchToken,
  ChatOptions,
  GeneratedToken,
  GenerateOptions,
  LoadOptions,
  PolicyForModel,
} from "./src/generate/options.ts";
export type { SamplingOptions } from "./src/generate/sampling.ts";
export type { GeneratorStats } from "./src/generate/stats.ts";
export type { LoadProgress } from "./src/model/weights.ts";
export type { ChatMessage } from "./src/tokens/chat_template.ts";
export type { CacheStats } from "./src/cache/slot_cache.ts";
export type * from "./src/policies/parts.ts";
export { citrus, type CitrusOptions } from "./src/policies/citrus.ts";
export {
  definePolicy,
  type MethodOptions,
  type PolicyParts,
} from "./src/policies/define_policy.ts";
export { adaKV, type AdaKVOptions } from "./src/policies/ada_kv.ts";
export {
  criticalAdaKV,
  type CriticalAdaKVOptions,
} from "./src/policies/critical_ada_kv.ts";
export { ahaKV, type AhaKVOptions } from "./src/policies/aha_kv.ts";
export { corm, type CormOptions } from "./src/policies/corm.ts";
export {
  criticalKV,
  type CriticalKVOptions,
  type CriticalValues,
} from "./src/policies/critical_kv.ts";
export { cam, type CamOptions } from "./src/policies/cam.ts";
export { d2o, type D2OOptions } from "./src/policies/d2o.ts";
export { fullCache, type FullCacheOptions } from "./src/policies/full_cache.ts";
export type { AttentionProfile } from "./src/policies/allocations/attention_profile.ts";
export {
  checkHeadLosses,
  type HeadLosses,
} from "./src/policies/allocations/head_losses.ts";
export {
  lossSlots,
  type LossSlotsOptions,
} from "./src/policies/allocations/loss_slots.ts";
export {
  prefixAllocation,
  type PrefixAllocationOptions,
} from "./src/policies/allocations/prefix_allocation.ts";
export {
  varianceAllocation,
  type VarianceAllocationOptions,
} from "./src/policies/allocations/variance_allocation.ts";
export {
  expectedAttention,
  type ExpectedAttentionOptions,
} from "./src/policies/expected_attention.ts";
export { h2o, type H2OOptions } from "./src/policies/h2o.ts";
export { keepKV, type KeepKVOptions } from "./src/policies/keep_kv.ts";
export { prefixKV, type PrefixKVOptions } from "./src/policies/prefix_kv.ts";
export { keyDiff, type KeyDiffOptions } from "./src/policies/key_diff.ts";
export { kvMerger, type KVMergerOptions } from "./src/policies/kv_merger.ts";
export { pyramidKV, type PyramidKVOptions } from "./src/policies/pyramid_kv.ts";
export { snapKV, type SnapKVOptions } from "./src/policies/snap_kv.ts";
export { steady, type SteadyOptions } from "./src/policies/steady.ts";
export {
  streamingLlm,
  type StreamingLlmOptions,
} from "./src/policies/streaming_llm.ts";
export { tova, type TovaOptions } from "./src/policies/tova.ts";
export {
  weightedKV,
  type WeightedKVOptions,
} from "./src/policies/weighted_kv.ts";
export {
  createPolicy,
  policies,
  type PolicyFactory,
} from "./src/policies/registry.ts";
export {
  openBackend,
  type OpenBackendOptions,
  type OpenedBackend,
} from "./src/backends/open_backend.ts";
export type * from "./src/backends/backend.ts";
