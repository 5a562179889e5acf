import {
  assert,
  assertEquals,
  assertMatch,
  assertStringIncludes,
} from "@std/assert";
import { decode, runCli, startCli } from "./run_cli.ts";

const golden: {
  items: { prompt: string; greedy_ids: number[]; greedy_text: string }[];
} = JSON.parse(
  await Deno.readTextFile(new URL("../golden/docs-7m.json", import.meta.url)),
);
const item = golden.items[0]!;

/** Enough for a test on the slowest backend. */
const TOKENS = 8;
const common = [
  "--backend=cpu",
  "--policy=full",
  "--budget=64",
  `--max-tokens=${TOKENS}`,
];

Deno.test("generate prints the text and nothing else on standard output", async () => {
  const { code, stdout, stderr } = await runCli("generate", [
    ...common,
    "--prompt",
    item.prompt,
  ]);
  assertEquals(code, 0);
  assert(stdout.length > TOKENS, stdout);
  assert(item.greedy_text.startsWith(stdout), stdout);
  assertMatch(stderr, /^text +8 tokens, [\d.,]+ tokens\/s$/m);
  assertMatch(stderr, /^cache +full, \d+ tokens in \d+ of 64 slots$/m);
});

Deno.test("generate --quiet leaves standard error empty", async () => {
  const { code, stdout, stderr } = await runCli("generate", [
    ...common,
    "--quiet",
    item.prompt,
  ]);
  assertEquals({ code, stderr }, { code: 0, stderr: "" });
  assert(item.greedy_text.startsWith(stdout), stdout);
});

Deno.test("generate --json prints a line per token and the statistics", async () => {
  const { code, stdout } = await runCli(
    "generate",
    [...common, "--json", "-"],
    `${item.prompt}\n`,
  );
  assertEquals(code, 0);
  assert(stdout.endsWith("}\n"));
  const lines = stdout.trimEnd().split("\n").map((line) => JSON.parse(line));
  const stats = lines.pop();
  assertEquals(lines.map(({ type }) => type), Array(TOKENS).fill("token"));
  assertEquals(
    lines.map(({ id }) => id),
    item.greedy_ids.slice(0, TOKENS),
  );
  const text = lines.map(({ text }) => text).join("");
  assert(item.greedy_text.startsWith(text), text);
  for (const { logprob } of lines) assert(logprob < 0 && logprob > -20);
  assertEquals(stats.type, "stats");
  assertEquals(stats.generatedTokens, TOKENS);
  assertEquals(stats.cache.budgetSlots, 64);
  assertEquals(stats.skippedBackends, []);
});

Deno.test("generate reads the prompt from a file and obeys stop strings", async () => {
  const file = await Deno.makeTempFile();
  try {
    await Deno.writeTextFile(file, `${item.prompt}\r\n`);
    const stop = item.greedy_text.slice(3, 8);
    const { code, stdout } = await runCli("generate", [
      ...common,
      ...["--prompt-file", file, "--stop=never", "--stop", stop],
    ]);
    assertEquals({ code, stdout }, {
      code: 0,
      stdout: item.greedy_text.slice(0, 3),
    });
  } finally {
    await Deno.remove(file);
  }
});

Deno.test("generate keeps to a budget of bytes, and the seed decides", async () => {
  const run = (seed: string) =>
    runCli("generate", [
      ...["--backend=cpu", "--policy=h2o", "--budget=400KB", "--chunk=8"],
      ...["--temperature=1.5", "--top-k=50", "--min-p=0.01", "--json"],
      ...["--max-tokens=24", `--seed=${seed}`, item.prompt],
    ]);
  const outcomes = await Promise.all(["7", "7", "8"].map(run));
  const [a, b, c] = outcomes.map(({ stdout }) =>
    stdout.split("\n").slice(0, 24).map((line) => JSON.parse(line).id)
  );
  assertEquals(a, b);
  assert(c!.some((id, i) => id !== a![i]));
  const stats = JSON.parse(outcomes[0]!.stdout.trimEnd().split("\n").at(-1)!);
  assert(stats.cache.bytes <= 400_000, `${stats.cache.bytes}`);
  assert(stats.cache.bytes > 360_000, `${stats.cache.bytes}`);
});

Deno.test("generate says which backends auto passed over", async () => {
  const doctor = JSON.parse((await runCli("doctor", ["--json"])).stdout);
  const { stderr } = await runCli("generate", ["--max-tokens=1", "A list"]);
  const line = stderr.split("\n").find((line) => line.startsWith("Using "));
  const names = doctor.backends.map(({ name }: { name: string }) => name);
  const skipped = names.slice(0, names.indexOf(doctor.auto));
  assertEquals(
    line?.match(/\w+(?= is not available)/g) ?? [],
    skipped,
    stderr,
  );
  if (line) assertStringIncludes(line, `Using ${doctor.auto};`);
});

Deno.test("generate rejects a wrong command line with status 2", async () => {
  const cases: [string[], string][] = [
    [[], "Cannot generate without a prompt"],
    [["--prompt", "a", "b"], "Cannot use several prompts"],
    [["--prompt-file", "a", "b"], "Cannot use several prompts"],
    [["--buget=5", "a"], "Cannot use flag --buget"],
    [["--budget=5x", "a"], "--budget 5x: expected slots (256), a share"],
    [["--policy=best", "a"], "expected one of full, steady"],
    [["--backend=tpu", "a"], "expected one of auto, cuda, webgpu, cpu"],
    [["--precision=fp8", "a"], "expected one of half, bfloat16"],
    [["--max-tokens=0", "a"], "expected a whole number of at least 1"],
    [["--temperature=-1", "a"], "expected a number from 0 to 100"],
    [["--top-p=0", "a"], "expected a number above 0 and at most 1"],
    [["--chunk=5000", "a"], "expected a whole number from 1 to 4096"],
    [["--chunk=8", "--whole=9", "a"], "expected --chunk or --whole"],
    [
      ["--policy=keepkv", "--losses=a", "b"],
      "--losses with --policy keepkv: expected --policy",
    ],
  ];
  await forEachOfTwo(cases, async ([args, message]) => {
    assertFailure(await runCli("generate", args), { code: 2, message });
  });
});

Deno.test("generate fails with one line and status 1", async () => {
  const cases: [string[], string][] = [
    [["--model=no/such", "a"], "Cannot load no/such"],
    [["--prompt-file=no/such"], "no/such: there is no such file"],
    [["--budget=2", "a"], "expected a budget of at least"],
    [
      ["--precision=bfloat16", "a"],
      'Cannot open backend "cpu" with precision "bfloat16"',
    ],
    [["--policy=full", "--budget=3", item.prompt], "does not compress"],
    [
      ["--policy=steady", "--losses=no/such", "a"],
      "Cannot load no/such: the file is missing",
    ],
    [
      ["--policy=steady", "--losses=examples/models/docs-7m/config.json", "a"],
      "Cannot load examples/models/docs-7m/config.json: budgets is missing",
    ],
    [["-"], "Cannot generate from an empty prompt"],
  ];
  await forEachOfTwo(cases, async ([args, message]) => {
    const all = ["--quiet", "--backend=cpu", ...args];
    assertFailure(await runCli("generate", all), { code: 1, message });
  });
});

Deno.test({
  name: "generate stops cleanly on Ctrl-C",
  ignore: Deno.build.os === "windows",
  async fn() {
    const child = await startCli("generate", [
      ...["--backend=cpu", "--budget=64", "--max-tokens=100000", "A list"],
    ]);
    await child.stdin.close();
    const reader = child.stdout.getReader();
    await reader.read();
    child.kill("SIGINT");
    while (!(await reader.read()).done);
    const stderr = await new Response(child.stderr).text();
    assertEquals((await child.status).code, 130);
    assertMatch(stderr, /^text +\d+ tokens/m);
    assert(!stderr.includes("    at "), stderr);
  },
});

Deno.test({
  name: "generate ends quietly when nobody reads its output",
  ignore: Deno.build.os === "windows",
  async fn() {
    const child = await startCli("generate", [
      ...["--backend=cpu", "--budget=64", "--max-tokens=100000", "A list"],
    ]);
    await child.stdin.close();
    const reader = child.stdout.getReader();
    assert(decode((await reader.read()).value!).length > 0);
    await reader.cancel();
    const stderr = await new Response(child.stderr).text();
    assertEquals((await child.status).code, 141);
    assertEquals(stderr, "");
  },
});

/** Runs two at a time. */
async function forEachOfTwo<T>(
  items: readonly T[],
  body: (item: T) => Promise<void>,
): Promise<void> {
  for (let at = 0; at < items.length; at += 2) {
    await Promise.all(items.slice(at, at + 2).map(body));
  }
}

function assertFailure(
  { code, stdout, stderr }: { code: number; stdout: string; stderr: string },
  expected: { code: number; message: string },
): void {
  assertEquals({ code, stdout }, { code: expected.code, stdout: "" }, stderr);
  assertStringIncludes(stderr, expected.message);
  assertEquals(stderr.trimEnd().split("\n").length, 1, stderr);
}
