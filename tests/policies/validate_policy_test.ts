import { assertThrows } from "@std/assert";
import { corm } from "../../src/policies/corm.ts";
import { criticalKV } from "../../src/policies/critical_kv.ts";
import { expectedAttention } from "../../src/policies/expected_attention.ts";
import { h2o } from "../../src/policies/h2o.ts";
import { keepKV } from "../../src/policies/keep_kv.ts";
import { kvMerger } from "../../src/policies/kv_merger.ts";
import { keyDiff } from "../../src/policies/key_diff.ts";
import type { Policy } from "../../src/policies/parts.ts";
import { pyramidKV } from "../../src/policies/pyramid_kv.ts";
import { cam } from "../../src/policies/cam.ts";
import { d2o } from "../../src/policies/d2o.ts";
import { steady } from "../../src/policies/steady.ts";
import { snapKV } from "../../src/policies/snap_kv.ts";
import { streamingLlm } from "../../src/policies/streaming_llm.ts";
import { validatePolicy } from "../../src/policies/validate_policy.ts";
import { weightedKV } from "../../src/policies/weighted_kv.ts";

const budget = 64;

Deno.test("validatePolicy() refuses numbers out of range", () => {
  const fails = (policy: Policy, message: string) =>
    assertThrows(() => validatePolicy(policy), RangeError, message);
  fails(
    criticalKV({ budget, first: 1.5 }),
    "values.first is 1.5: expected a number at least 0 and at most 1",
  );
  fails(criticalKV({ budget, epsilon: -1 }), "values.epsilon is -1");
  for (const width of [4, 0, -3, 1.5]) {
    fails(
      snapKV({ budget, pool: { kind: "mean", width } }),
      `select.pool.width is ${width}: expected an odd number at least 1`,
    );
  }
  fails(expectedAttention({ budget, horizon: 0 }), "score.horizon is 0");
  fails(pyramidKV({ budget, beta: 0.5 }), "allocate.layers.beta is 0.5");
  fails(snapKV({ budget, window: 0 }), "probe.rows is 0");
  fails(steady({ budget, keyWeight: -1 }), "merge.keyWeight is -1");
  fails(steady({ budget, valueWeight: NaN }), "merge.valueWeight is NaN");
  fails(steady({ budget, rounds: 65 }), "merge.rounds is 65");
  fails(d2o({ budget, keep: 1 }), "merge.keep is 1");
  fails(kvMerger({ budget, heavy: 1.1 }), "merge.heavy is 1.1");
  fails(cam({ budget, count: 257 }), "merge.count is 257");
  fails(cam({ budget, seed: 2 ** 32 }), "merge.seed is 4294967296");
});

Deno.test("validatePolicy() refuses parts that do not go together", () => {
  const fails = (policy: Policy, message: string) =>
    assertThrows(() => validatePolicy(policy), TypeError, message);
  const shared = (policy: Policy): Policy => ({
    ...policy,
    select: { ...policy.select, scope: "layer" },
  });
  fails(
    criticalKV({ base: streamingLlm({ budget }) }),
    'values of kind "norm" scale attention, score is of kind "position"',
  );
  fails(
    criticalKV({ base: weightedKV({ budget, rule: "exact" }) }),
    'merge.rule "exact"',
  );
  fails(criticalKV({ base: keyDiff({ budget }) }), '"keyDistance"');
  fails(
    { ...corm({ budget }), merge: keepKV({ budget }).merge },
    'a score of kind "age"',
  );
  fails(shared(keepKV({ budget })), 'merge.prefill "mergeFirst"');
  fails(shared(steady({ budget })), 'merge of kind "pair"');
  fails(shared(kvMerger({ budget })), 'merge of kind "segments"');
  fails(steady({ budget, key: "zip" }), 'merge.key "zip"');
  for (
    const policy of [
      criticalKV({ base: keepKV({ budget }) }),
      criticalKV({ base: shared(h2o({ budget })) }),
      shared(keepKV({ budget, prefill: "evictFirst" })),
      shared(snapKV({ budget })),
      criticalKV({ base: expectedAttention({ budget }) }),
    ]
  ) validatePolicy(policy);
});
