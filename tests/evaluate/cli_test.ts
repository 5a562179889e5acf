import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { fromFileUrl, join } from "@std/path";
import { stdFlags } from "../offline_std/std_flags.ts";

/** Runs the command as a user does, from the root of the repository. */
async function evaluate(
  ...args: readonly string[]
): Promise<{ code: number; stdout: string; stderr: string }> {
  const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: [
      ...["run", "--no-check", "--no-prompt", "--allow-read", "--allow-write"],
      ...await stdFlags(),
      ...["src/cli/evaluate.ts", ...args],
    ],
    cwd: fromFileUrl(new URL("../../", import.meta.url)),
    env: { NO_COLOR: "1" },
    stdin: "null",
  }).output();
  const decoder = new TextDecoder();
  return {
    code,
    stdout: decoder.decode(stdout),
    stderr: decoder.decode(stderr),
  };
}

Deno.test("evaluate --help lists its flags", async () => {
  const { code, stdout, stderr } = await evaluate("--help");
  assertEquals({ code, stderr }, { code: 0, stderr: "" });
  for (const flag of ["documents", "policy", "budget", "tasks", "resume"]) {
    assertStringIncludes(stdout, `--${flag}`);
  }
});

Deno.test("evaluate says what is wrong with the command line", async () => {
  const cases = [
    [[], "expected --documents"],
    [["--documents=d", "--budget=x"], "Cannot use --budget x"],
    [["--documents=d", "--tasks=needle", "--depth=2"], "depths.0 is 2"],
    [["--documents=d", "extra"], "Cannot use argument extra"],
  ] as const;
  for (const [args, message] of cases) {
    const { code, stdout, stderr } = await evaluate(...args);
    assertEquals({ code, stdout }, { code: 2, stdout: "" }, stderr);
    assertStringIncludes(stderr, message);
  }
});

Deno.test("evaluate measures, resumes and reports", async () => {
  const folder = await Deno.makeTempDir();
  try {
    const documents = join(folder, "documents.jsonl");
    const text = "The SELECT statement reads rows from a table. ".repeat(6);
    await Deno.writeTextFile(
      documents,
      ["a", "b"].map((name) =>
        `${JSON.stringify({ source: "test", name, text })}\n`
      ).join(""),
    );
    const out = join(folder, "out");
    const args = [
      ...["--backend", "cpu", "--documents", documents, "--half", "all"],
      ...["--policy", "h2o", "--policy", "streaming-llm", "--budget", "50%"],
      ...["--prompt", "20", "--continuation", "4", "--max-documents", "1"],
      ...["--setting", "whole", "--out", out],
    ];
    const first = await evaluate(...args);
    assertEquals(first.code, 0, first.stderr);
    assertEquals(first.stdout, `${join(out, "report.html")}\n`);
    assertStringIncludes(first.stderr, "3 measurements\n");
    const summary = JSON.parse(
      await Deno.readTextFile(join(out, "summary.json")),
    );
    assertEquals(summary.model, "docs-7m");
    assertEquals(summary.policies, ["full", "h2o", "streaming-llm"]);
    const report = await Deno.readTextFile(join(out, "report.html"));
    assertStringIncludes(report, "documents.jsonl, all");
    const results = join(out, "results.jsonl");
    const lines = await Deno.readTextFile(results);
    assertEquals(lines.trim().split("\n").length, 3);

    const refused = await evaluate(...args);
    assertEquals(refused.code, 2);
    assertStringIncludes(refused.stderr, "use --resume");
    const again = await evaluate(...args, "--resume");
    assertEquals(again.code, 0, again.stderr);
    assertStringIncludes(again.stderr, "3 measurements, 3 of them known");
    assertEquals(await Deno.readTextFile(results), lines);
    assert(await Deno.readTextFile(join(out, "report.html")) === report);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});
