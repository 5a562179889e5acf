import {
  assert,
  assertEquals,
  assertMatch,
  assertStringIncludes,
} from "@std/assert";
import { runCli, startCli } from "./run_cli.ts";

const common = ["--backend=cpu", "--budget=128", "--max-tokens=24"];
const FACT = "The access code for the silver heron is 48213.";
const QUESTION = "What is the access code for the silver heron?";

Deno.test("chat answers line by line and reuses what it has read", async () => {
  const { code, stdout, stderr } = await runCli(
    "chat",
    common,
    `${FACT} ${QUESTION}\n\n${QUESTION}`,
  );
  assertEquals({ code, stdout }, { code: 0, stdout: `${FACT}\n${FACT}\n` });
  const [first, second] = stderr.match(/^\[.*\]$/gm)!;
  assertMatch(first!, /of 128 slots, [\d.]+ MiB; \d+ read, 0 reused/);
  const [, reused] = /(\d+) reused/.exec(second!)!;
  assert(Number(reused) > 40, second);
});

Deno.test("chat obeys its commands", async () => {
  const { code, stdout, stderr } = await runCli(
    "chat",
    common,
    [
      ...["/stats", "/help", "/nothing", `/system ${FACT}`, QUESTION],
      ...["/stats", "/reset", QUESTION, "/system", QUESTION, "/exit", "Hello"],
    ].join("\n"),
  );
  assertEquals(code, 0);
  // A reset keeps what the model was told first, /system alone does not.
  const answers = stdout.split("\n");
  assertEquals(answers.length, 4, stdout);
  assertEquals(answers.slice(0, 2), [FACT, FACT]);
  assert(answers[2] !== FACT, stdout);
  assertStringIncludes(stderr, "Cannot obey /nothing: expected a command");
  assertMatch(stderr, /^ {2}\/exit /m);
  assertMatch(stderr, /^cache +steady, \d+ tokens in \d+ of 128 slots$/m);
});

Deno.test("chat goes on after an answer that failed", async () => {
  const { code, stdout, stderr } = await runCli(
    "chat",
    ["--backend=cpu", "--policy=full", "--budget=64", "--quiet"],
    `${FACT.repeat(5)}\n${FACT} ${QUESTION}\n`,
  );
  assertEquals({ code, stdout }, { code: 0, stdout: `${FACT}\n` });
  assertMatch(stderr, /^Cannot hold \d+ tokens in a cache of 64 slots .*\n$/);
});

Deno.test("chat rejects a wrong command line with status 2", async () => {
  for (
    const [args, message] of [
      [["hello"], "Cannot use argument hello: expected flags only"],
      [["--json"], "Cannot use flag --json"],
    ] as const
  ) {
    const { code, stdout, stderr } = await runCli("chat", args);
    assertEquals({ code, stdout }, { code: 2, stdout: "" });
    assertStringIncludes(stderr, message);
  }
});

Deno.test({
  name: "Ctrl-C stops an answer of a chat, not the chat",
  ignore: Deno.build.os === "windows",
  async fn() {
    const child = await startCli("chat", [
      ...["--backend=cpu", "--budget=64", "--max-tokens=100000", "--seed=1"],
      // Nothing that such a text says can end it soon.
      ...["--temperature=3", "--quiet"],
    ]);
    const writer = child.stdin.getWriter();
    const encoder = new TextEncoder();
    await writer.write(encoder.encode("Hello\n"));
    const reader = child.stdout.getReader();
    await reader.read();
    child.kill("SIGINT");
    await writer.write(encoder.encode("/exit\n"));
    while (!(await reader.read()).done);
    assertEquals(await new Response(child.stderr).text(), "");
    assertEquals((await child.status).code, 0);
    await writer.close().catch(() => {});
  },
});
