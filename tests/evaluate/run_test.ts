import {
  assert,
  assertAlmostEquals,
  assertEquals,
  assertRejects,
  assertThrows,
} from "@std/assert";
import { CpuBackend } from "../../src/backends/cpu/cpu_backend.ts";
import { EvaluationFormatError } from "../../src/evaluate/format_error.ts";
import { type EvaluationPlan, parsePlan } from "../../src/evaluate/plan.ts";
import { summarize } from "../../src/evaluate/report/summary.ts";
import {
  memoryResults,
  openResults,
  parseResults,
  type ResultRow,
  type ResultStore,
} from "../../src/evaluate/results.ts";
import { runPlan, type RunProgress } from "../../src/evaluate/run.ts";
import { tinyDocuments, tinyEvaluation } from "./tiny_evaluation.ts";

const backend = new CpuBackend();
const model = tinyEvaluation(backend);

function plan(change: object = {}): EvaluationPlan {
  const json = {
    policies: [{ policy: "keepkv" }, { policy: "h2o" }],
    budgets: [12, "50%"],
    chunk: 8,
    batch: 1,
    half: "all",
    tasks: [
      { kind: "perplexity", prompt: 32, continuation: 6, documents: 2 },
      { kind: "agreement", prompt: 32, continuation: 4, documents: 1 },
      { kind: "perturbation", prompt: 32, probes: 2, documents: 1 },
      {
        kind: "perturbation",
        prompt: 32,
        probes: 2,
        queries: "window",
        documents: 1,
      },
      { kind: "retrieval", form: "needle", lengths: [200], depths: [0.5] },
      {
        kind: "retrieval",
        form: "ledger",
        lengths: [60],
        depths: [0, 1],
        questions: ["seen", "probe"],
      },
    ],
    ...change,
  };
  return parsePlan(JSON.stringify(json), "plan.json");
}

/** Runs a plan; returns its results and the labels of what was measured. */
async function run(
  own: EvaluationPlan,
  results: ResultStore,
  signal?: AbortSignal,
): Promise<{ rows: ResultRow[]; progress: RunProgress[] }> {
  const progress: RunProgress[] = [];
  const rows = await runPlan({
    model,
    documents: tinyDocuments,
    plan: own,
    results,
    onProgress: (at) => progress.push(at),
    signal,
  });
  return { rows, progress };
}

/** Makes a file that the test removes. */
async function temporaryFile(): Promise<{ path: string } & AsyncDisposable> {
  const path = await Deno.makeTempFile({ suffix: ".jsonl" });
  return { path, [Symbol.asyncDispose]: () => Deno.remove(path) };
}

Deno.test("a plan measures every policy, budget, setting and text", async () => {
  const { rows, progress } = await run(plan(), memoryResults());
  const limited = 2 * 2 * 2; // settings, policies, budgets
  // Windows; needle seen and unseen, ledger at 2 depths seen and as probe.
  const [texts, asked] = [2, 2 + 4];
  const expected = {
    perplexity: texts * (limited + 1),
    agreement: limited,
    perturbation: 2 * limited,
    retrieval: asked * (limited + 1),
  };
  assertEquals(
    new Set(
      rows.flatMap(({ kind, task }) => kind === "perturbation" ? [task] : []),
    ),
    new Set(["perturbation 32+2", "perturbation 32, its last 2"]),
  );
  const counts = Object.fromEntries(
    [...Map.groupBy(rows, ({ kind }) => kind)]
      .map(([kind, rows]) => [kind, rows.length]),
  );
  assertEquals(counts, expected);
  assertEquals(new Set(rows.map(({ key }) => key)).size, rows.length);
  assertEquals(progress.length, rows.length + 1);
  assertEquals(progress.map(({ done }) => done), [
    ...rows.keys(),
    rows.length,
  ]);

  for (const row of rows) {
    assertEquals(row.setting === "either", row.policy === "full");
    assert(row.memory.slotBytes <= row.memory.fullBytes);
    if (row.policy === "full" && row.kind === "perplexity") {
      assertEquals(row.result.loss, row.result.fullLoss);
      assertEquals(row.memory.slotBytes, row.memory.fullBytes);
    }
    if (row.kind === "agreement") {
      assertEquals(row.result.tokens, 4);
      assert(row.result.divergence > 0);
    }
  }
  // The whole prompt is staged in one setting, a chunk in the other.
  const stage = (setting: string) =>
    rows.find((row) => row.setting === setting && row.kind === "perplexity")!
      .memory.stageBytes;
  assertEquals(stage("whole"), 4 * stage("streaming"));

  const summary = summarize(rows);
  assertEquals(summary.policies, ["full", "keepkv", "h2o"]);
  const [first] = summary.perplexity;
  assertEquals(
    summary.perplexity.map(({ setting }) => setting),
    ["whole", "streaming"],
  );
  assertEquals(first!.entries.length, 5);
  const own = rows.filter((row) =>
    row.kind === "perplexity" && row.policy === "h2o" &&
    row.budget === "50%" && row.setting === "whole"
  );
  const entry = first!.entries.find(({ policy, budget }) =>
    policy === "h2o" && budget === "50%"
  )!;
  const losses = own.map((row) => row.kind === "perplexity" ? row.result : null)
    .map((result) => result!.loss - result!.fullLoss);
  assertAlmostEquals(entry.excess.mean, (losses[0]! + losses[1]!) / 2, 1e-12);
});

Deno.test("the same plan gives the same results", async () => {
  const small = plan({ tasks: plan().tasks.slice(0, 1) });
  const first = await run(small, memoryResults());
  const second = await run(small, memoryResults());
  assertEquals(second.rows, first.rows);
});

Deno.test("a budget of bytes is kept by slots and head table", async () => {
  const tasks = [
    { kind: "perplexity", prompt: 32, continuation: 3, documents: 2 },
  ];
  const budgets = ["6000B"];
  const own = plan({ tasks, budgets, policies: [{ policy: "h2o" }], batch: 2 });
  const { rows } = await run(own, memoryResults());
  const limited = rows.filter(({ policy }) => policy === "h2o");
  assertEquals(limited.length, 4);
  for (const { memory, budget } of limited) {
    assertEquals(budget, "5.85938 KiB");
    assert(memory.slotBytes <= 6000);
    // One more slot for each of 2 layers and 2 heads would not fit.
    assert(memory.slotBytes + 4 * 200 > 6000, String(memory.slotBytes));
  }
});

Deno.test("texts measured together have the results of each alone", async () => {
  const tasks = ["perplexity", "agreement"].map((kind) => ({
    kind,
    prompt: 32,
    continuation: 6,
    documents: 5,
  }));
  const byKey = async (batch: number) => {
    const { rows, progress } = await run(
      plan({ tasks, batch }),
      memoryResults(),
    );
    assertEquals(progress.at(-1)!.done, rows.length);
    return rows.toSorted((a, b) => a.key < b.key ? -1 : 1);
  };
  // The last group is not full.
  assertEquals(await byKey(3), await byKey(1));
});

Deno.test("a run that was cut off goes on where it stopped", async () => {
  await using file = await temporaryFile();
  const small = plan({
    policies: [{ policy: "h2o" }],
    tasks: plan().tasks.slice(0, 1),
  });
  const controller = new AbortController();
  const stopping = await openResults(file.path);
  let measured = 0;
  const error = await assertRejects(() =>
    runPlan({
      model,
      documents: tinyDocuments,
      plan: small,
      results: stopping,
      onProgress() {
        if (measured++ === 3) controller.abort(new Error("enough"));
      },
      signal: controller.signal,
    })
  );
  assertEquals((error as Error).message, "enough");
  assertEquals(stopping.rows.length, 3);
  // The process died in the middle of a line.
  await Deno.writeTextFile(file.path, '{"version":1,"key"', { append: true });

  const again = await openResults(file.path);
  assertEquals(again.rows, stopping.rows);
  const { rows, progress } = await run(small, again);
  assertEquals(progress[0]!.skipped, 3);
  assertEquals(progress.length, rows.length - 3 + 1);
  assertEquals(rows, (await run(small, memoryResults())).rows);
  const stored = parseResults(await Deno.readTextFile(file.path), file.path);
  assertEquals(stored, rows);

  const done = await run(small, await openResults(file.path));
  assertEquals(done.progress.map(({ label }) => label), [""]);
  // More budgets and another name need no old result again.
  const more = await run(
    plan({
      policies: [{ policy: "h2o", label: "heavy hitters" }],
      budgets: [12, 14, "50%"],
      tasks: plan().tasks.slice(0, 1),
    }),
    await openResults(file.path),
  );
  assertEquals(more.progress[0]!.skipped, rows.length);
  assert(more.rows.every(({ policy }) => policy !== "h2o"));
});

Deno.test("results of another version are not mixed in", () => {
  const line = JSON.stringify({ version: 0, key: "a" });
  assertThrows(
    () => parseResults(`${line}\n`, "r.jsonl"),
    EvaluationFormatError,
    "Cannot read r.jsonl: line 1: version is 0, expected 1",
  );
});

Deno.test("what cannot work is refused before anything is measured", async () => {
  const results = memoryResults();
  await assertRejects(
    () => run(plan({ budgets: [30, 4] }), results),
    RangeError,
    "Cannot evaluate keepkv at 4 slots",
  );
  const long = [{ kind: "perplexity", prompt: 4000, continuation: 500 }];
  await assertRejects(
    () => run(plan({ tasks: long }), results),
    RangeError,
    "Cannot find a window of 4500 tokens",
  );
  assertEquals(results.rows, []);
});

Deno.test("the halves have no document in common", async () => {
  const documentsOf = async (half: string) => {
    const tasks = [{ kind: "perplexity", prompt: 16, continuation: 2 }];
    const own = plan({ half, tasks, policies: [{ policy: "full" }] });
    const { rows } = await run(own, memoryResults());
    return rows.map((row) => row.kind === "perplexity" && row.item.document);
  };
  const tune = await documentsOf("tune");
  const report = await documentsOf("report");
  assertEquals(tune.length + report.length, tinyDocuments.length);
  assertEquals(new Set([...tune, ...report]).size, tinyDocuments.length);
});
