import { assertEquals, assertStringIncludes } from "@std/assert";
import { fromFileUrl } from "@std/path";
import { root } from "./files.ts";

/** Runs `tests/run.ts` on files with the given texts. */
async function run(
  files: Record<string, string>,
  ...options: string[]
): Promise<{ code: number; lines: string[] }> {
  const folder = await Deno.makeTempDir();
  try {
    for (const [name, text] of Object.entries(files)) {
      await Deno.writeTextFile(`${folder}/${name}_test.ts`, text);
    }
    const { code, stdout } = await new Deno.Command(Deno.execPath(), {
      args: ["run", "-A", "--no-config", "tests/run.ts", folder, ...options],
      cwd: fromFileUrl(root),
      stdin: "null",
      stderr: "null",
    }).output();
    const text = new TextDecoder().decode(stdout).replaceAll(folder, "");
    return { code, lines: text.trimEnd().split("\n") };
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

const PASSES = `
Deno.test("one", () => {});
Deno.test("two", async (t) => { await t.step("a step", () => {}); });
`;

Deno.test("the test task adds up the files and names what was ignored", async () => {
  const ignored = `
Deno.test("three", () => {});
Deno.test.ignore("four (no adapter)", () => {});
`;
  const { code, lines } = await run({ a: PASSES, b: ignored });
  assertEquals(code, 0);
  assertEquals(lines.slice(-2), [
    "IGNORED /b_test.ts: four (no adapter)",
    "3 passed, 0 failed, 1 skipped",
  ]);
});

Deno.test("the test task counts failures, crashes and files without tests", async () => {
  const { code, lines } = await run({
    passes: PASSES,
    fails: 'Deno.test("five", () => { throw new Error("no"); });',
    throws: 'throw new Error("at the top");',
    late: `${PASSES}
Deno.test("six", () => { setTimeout(() => { throw new Error("late"); }, 300); });
Deno.test("seven", () => new Promise(() => { setTimeout(() => {}, 9e3); }));
`,
    crashes: `${PASSES}
Deno.test("eight", () => { Deno.kill(Deno.pid, "SIGKILL"); });
`,
    empty: "export {};",
    only: 'Deno.test.only("nine", () => {});',
  });
  assertEquals(code, 1);
  assertEquals(
    lines.filter((line) => line.startsWith("FAILED /")).sort(),
    ["crashes", "empty", "fails", "late", "only", "throws"]
      .map((name) => `FAILED /${name}_test.ts`),
  );
  // passes 2, late 3, only 1; late fails in "seven" and by the uncaught error.
  assertEquals(lines.at(-1), "6 passed, 7 failed");
});

Deno.test("the test task fails on a type error and on no test at all", async () => {
  const wrong = "const x: number = 'text'; Deno.test(String(x), () => {});";
  const compiled = await run({ wrong });
  assertEquals([compiled.code, compiled.lines.at(-1)], [
    1,
    "0 passed, 1 failed",
  ]);
  const empty = await run({});
  assertEquals([empty.code, empty.lines.at(-1)], [1, "0 passed, 0 failed"]);
  const filtered = await run({ passes: PASSES }, "--filter=nothing");
  assertEquals([filtered.code, filtered.lines.at(-1)], [
    1,
    "0 passed, 0 failed",
  ]);
});

Deno.test("the test task passes options on", async () => {
  const { code, lines } = await run({ a: PASSES, b: PASSES }, "--filter=two");
  assertEquals([code, lines.at(-1)], [0, "2 passed, 0 failed"]);
  assertStringIncludes(lines.join("\n"), "a step ... ok");
});

Deno.test({
  name: "the test task keeps OpenGL out of the processes of tests",
  ignore: Deno.build.os !== "linux",
  fn: async () => {
    const asks = `
Deno.test({
  name: "eleven",
  sanitizeOps: false,
  sanitizeResources: false,
  fn: async () => {
    await navigator.gpu?.requestAdapter();
    const maps = "/proc/" + Deno.pid + "/maps";
    const { code } = await new Deno.Command("grep", {
      args: ["-q", "libEGL", maps],
    }).output();
    if (code !== 1) throw new Error("grep libEGL " + maps + " ends with " + code);
  },
});
`;
    const { lines } = await run({ asks });
    assertEquals(lines.at(-1), "1 passed, 0 failed");
  },
});
