/**
 * Policies by name, for command lines and reports.
 *
 * @module
 */
import { adaKV } from "./ada_kv.ts";
import { criticalAdaKV } from "./critical_ada_kv.ts";
import { ahaKV } from "./aha_kv.ts";
import { corm } from "./corm.ts";
import { criticalKV } from "./critical_kv.ts";
import { cam } from "./cam.ts";
import { d2o } from "./d2o.ts";
import { expectedAttention } from "./expected_attention.ts";
import { fullCache } from "./full_cache.ts";
import { h2o } from "./h2o.ts";
import { keepKV } from "./keep_kv.ts";
import { keyDiff } from "./key_diff.ts";
import { kvMerger } from "./kv_merger.ts";
import type { Budget, Policy } from "./parts.ts";
import { pyramidKV } from "./pyramid_kv.ts";
import { snapKV } from "./snap_kv.ts";
import { steady } from "./steady.ts";
import { streamingLlm } from "./streaming_llm.ts";
import { tova } from "./tova.ts";
import { weightedKV } from "./weighted_kv.ts";

/** What makes a policy with its defaults from a budget. */
export type PolicyFactory = (options: { readonly budget: Budget }) => Policy;

/** Every published method in the package, by name. */
export const policies: Readonly<Record<string, PolicyFactory>> = {
  "full": fullCache,
  "steady": steady,
  "keepkv": keepKV,
  "weightedkv": weightedKV,
  "criticalkv": criticalKV,
  "h2o": h2o,
  "adakv": adaKV,
  "criticaladakv": criticalAdaKV,
  "snapkv": snapKV,
  "pyramidkv": pyramidKV,
  "tova": tova,
  "keydiff": keyDiff,
  "expected-attention": expectedAttention,
  "corm": corm,
  "ahakv": ahaKV,
  "d2o": d2o,
  "cam": cam,
  "kvmerger": kvMerger,
  "streaming-llm": streamingLlm,
};

/**
 * Makes the policy called `name` with its defaults.
 *
 * @throws {RangeError} If there is no such policy.
 */
export function createPolicy(name: string, budget: Budget): Policy {
  const factory = Object.hasOwn(policies, name) ? policies[name] : undefined;
  if (factory === undefined) {
    throw new RangeError(
      `Cannot find policy "${name}": expected one of ${
        Object.keys(policies).join(", ")
      }`,
    );
  }
  return factory({ budget });
}
