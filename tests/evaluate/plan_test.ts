import { assertEquals, assertThrows } from "@std/assert";
import { definePolicy } from "../../src/policies/define_policy.ts";
import { EvaluationFormatError } from "../../src/evaluate/format_error.ts";
import { parsePlan } from "../../src/evaluate/plan.ts";
import { budgetLabel, promptBudget } from "../../src/evaluate/plan_budget.ts";

const minimal = {
  policies: [{ policy: "keepkv" }],
  budgets: [32],
  tasks: [{ kind: "perplexity", prompt: 64, continuation: 16 }],
};

function parse(plan: object) {
  return parsePlan(JSON.stringify(plan), "plan.json");
}

Deno.test("a plan has defaults", () => {
  const plan = parse(minimal);
  assertEquals(plan.settings, ["whole", "streaming"]);
  assertEquals(plan.half, "report");
  assertEquals(plan.seeds, [1]);
  assertEquals(plan.chunk, 64);
  assertEquals(plan.policies.map(({ label }) => label), ["keepkv"]);
});

Deno.test("policies take options, and the full cache is not one of them", () => {
  const { policies } = parse({
    ...minimal,
    policies: [
      { policy: "full" },
      { policy: "keepkv", label: "always merge", options: { threshold: -1 } },
      { policy: "keepkv" },
    ],
  });
  assertEquals(policies.map(({ label }) => label), ["always merge", "keepkv"]);
  const { merge, budget } = policies[0]!.create(48);
  assertEquals(budget, 48);
  assertEquals(merge.kind === "votes" && merge.threshold, -1);
});

Deno.test("a policy may be composed of parts", () => {
  const parts = {
    probe: { kind: "last", rows: 8 },
    score: { kind: "mean" },
    merge: { kind: "drop" },
  };
  const { policies } = parse({
    ...minimal,
    policies: [{ label: "mine", parts }],
  });
  const policy = policies[0]!.create(48);
  assertEquals(
    policy,
    definePolicy({
      name: "mine",
      budget: 48,
      probe: { kind: "last", rows: 8 },
      score: { kind: "mean" },
      merge: { kind: "drop" },
    }),
  );
  const fails = (change: object, message: string) =>
    assertThrows(
      () =>
        parse({
          ...minimal,
          policies: [{ label: "mine", parts: { ...parts, ...change } }],
        }),
      TypeError,
      message,
    );
  fails({ merge: { kind: "blend" } }, 'merge.kind is "blend": expected one of');
  fails({ score: undefined }, "score.kind is missing: expected one of");
});

Deno.test("budgets are memory too", () => {
  const { budgets } = parse({ ...minimal, budgets: ["4MiB", "100 KB", "64b"] });
  assertEquals(budgets.map(budgetLabel), ["4 MiB", "97.6563 KiB", "64 B"]);
  assertEquals(promptBudget(budgets[0]!, 200), { bytes: 2 ** 22 });
});

Deno.test("budgets are slots or shares of the prompt", () => {
  const { budgets } = parse({ ...minimal, budgets: [32, "7%", "12.5%"] });
  assertEquals(budgets.map(budgetLabel), ["32", "7%", "12.5%"]);
  // 0.07 · 200 is a little more than 14 in binary.
  assertEquals(budgets.map((b) => promptBudget(b, 200)), [32, 14, 25]);
  assertEquals(promptBudget({ ratio: 0.01 }, 50), 1);
  // 0.29 · 100 is a little less than 29.
  assertEquals(promptBudget({ ratio: 0.29 }, 100), 29);
});

Deno.test("errors name the field", () => {
  const fails = (plan: object, message: string) =>
    assertThrows(() => parse(plan), EvaluationFormatError, message);
  const task = minimal.tasks[0]!;
  fails({ ...minimal, tasks: [] }, "tasks is [], expected at least one entry");
  fails(
    { ...minimal, tasks: [{ ...task, prompt: 200_000 }] },
    "tasks.0.prompt is 200000, expected a whole number from 1 to 131072",
  );
  fails(
    { ...minimal, tasks: [{ ...task, kind: "speed" }] },
    'tasks.0.kind is "speed", expected one of perplexity',
  );
  fails({ ...minimal, tasks: [{ ...task, promt: 3 }] }, "tasks.0.promt");
  fails(
    { ...minimal, budgets: ["0%"] },
    'budgets.0 is "0%", expected a number',
  );
  fails(
    { ...minimal, policies: [{ policy: "best" }] },
    'policies.0.policy is "best", expected one of full, steady',
  );
  fails(
    { ...minimal, policies: [{ parts: {} }] },
    'policies.0 is {"parts":{}}, expected policy, label and options',
  );
  fails(
    { ...minimal, policies: [...minimal.policies, ...minimal.policies] },
    'policies has the label "keepkv" twice',
  );
  assertThrows(
    () => parsePlan("{", "plan.json"),
    EvaluationFormatError,
    "Cannot read plan.json: the plan is damaged",
  );
  // A policy's own checks apply before anything runs.
  assertThrows(
    () =>
      parse({
        ...minimal,
        policies: [{ policy: "keepkv", options: { alpha: 2 } }],
      }),
    RangeError,
    "score.alpha",
  );
});
