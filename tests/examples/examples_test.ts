import { assert, assertEquals, assertMatch } from "@std/assert";
import { fromFileUrl } from "@std/path";
import { stdFlags } from "../offline_std/std_flags.ts";

async function runExample(
  name: string,
): Promise<{ code: number; stdout: string; stderr: string }> {
  const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: [
      ...["run", "--no-check", "--no-prompt", "--allow-read"],
      ...await stdFlags(),
      ...["examples/run.ts", name],
    ],
    cwd: fromFileUrl(new URL("../../", import.meta.url)),
    stdin: "null",
  }).output();
  const decoder = new TextDecoder();
  return {
    code,
    stdout: decoder.decode(stdout),
    stderr: decoder.decode(stderr),
  };
}

async function outputOf(name: string): Promise<string> {
  const { code, stdout, stderr } = await runExample(name);
  assertEquals(code, 0, stderr);
  return stdout;
}

Deno.test("hello streams a text", async () => {
  const stdout = await outputOf("hello");
  const [, text = ""] = /statement …\n([^]*)\n\nDone/.exec(stdout)!;
  assert(text.length > 60, stdout);
});

Deno.test("batch ends each of its texts once", async () => {
  const stdout = await outputOf("batch");
  const begun = [...stdout.matchAll(/^(\d): (\w+ \w+)/gm)]
    .map(([, index, words]) => `${index} ${words}`);
  assertEquals(begun.sort(), ["1 The SELECT", "2 The CREATE", "3 An index"]);
  assertMatch(stdout, /^\d+ tokens; 3 caches of 64 slots are /m);
});

Deno.test("chat remembers what it was told", async () => {
  const stdout = await outputOf("chat");
  assertEquals(
    stdout.match(/^The access code for the silver heron is 48213\.$/gm)?.length,
    2,
    stdout,
  );
});

Deno.test("long_context reads ten times its budget in constant memory", async () => {
  const stdout = await outputOf("long_context");
  const bytes = [...stdout.matchAll(/tokens read, (\S+) MiB/g)]
    .map(([, size]) => size);
  assert(bytes.length > 4, stdout);
  assertEquals(new Set(bytes).size, 1, stdout);
  assertMatch(stdout, /128 of 128 slots/);
  assertMatch(stdout, /silver heron is 48213\.? \(right\)/);
});

Deno.test("compare_policies agrees with itself and fills the budget", async () => {
  const stdout = await outputOf("compare_policies");
  assertMatch(stdout, /^full: .* first (\d+) of \1 tokens/m);
  for (const name of ["keepkv", "h2o", "streaming-llm"]) {
    assertMatch(stdout, new RegExp(`^${name}: 128 slots, `, "m"));
  }
});

Deno.test("custom_policy merges and drops", async () => {
  const stdout = await outputOf("custom_policy");
  const counts = [...stdout.matchAll(/(\d+) merged, (\d+) dropped/g)]
    .map(([, merged, dropped]) => [Number(merged), Number(dropped)]);
  assertEquals(counts.length, 2);
  const [[merged], [cautiouslyMerged]] = counts as [number[], number[]];
  assert(merged! > 0 && cautiouslyMerged! < merged!, stdout);
});

Deno.test("an example that does not exist is an error", async () => {
  const { code, stderr } = await runExample("goodbye");
  assertEquals(code, 2);
  assertMatch(
    stderr,
    /^Cannot run example goodbye: expected hello, batch, chat/,
  );
});
