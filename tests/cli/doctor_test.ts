import { assert, assertEquals, assertMatch } from "@std/assert";
import { type Program, runCli } from "./run_cli.ts";

Deno.test("doctor names each backend, and a remedy for those missing", async () => {
  const { code, stdout } = await runCli("doctor", ["--json"]);
  assertEquals(code, 0);
  const report = JSON.parse(stdout);
  assertEquals(report.deno, Deno.version.deno);
  const names = report.backends.map(({ name }: { name: string }) => name);
  assertEquals(names, ["cuda", "webgpu", "cpu"]);
  assert(report.backends.at(-1).available);
  for (const { available, reason, remedy, description } of report.backends) {
    assert(available ? description.length > 3 : reason.length > 3);
    assert(available || remedy.length > 3);
    // The reason is not the whole message.
    assert(available || !reason.startsWith("Cannot"), reason);
  }

  const text = await runCli("doctor", []);
  assertEquals(text.code, 0);
  for (const { name, available } of report.backends) {
    const state = available ? "available" : "not available";
    assertMatch(text.stdout, new RegExp(`^${name} +${state}$`, "m"));
  }
  assertMatch(text.stdout, new RegExp(`--backend auto takes ${report.auto}\n`));
});

Deno.test("doctor takes no arguments", async () => {
  const { code, stdout, stderr } = await runCli("doctor", ["cpu"]);
  assertEquals({ code, stdout }, { code: 2, stdout: "" });
  assertEquals(stderr, "Cannot use argument cpu: expected flags only\n");
});

Deno.test("the help of each program fits 80 columns", async () => {
  for (const program of ["generate", "chat", "doctor"] satisfies Program[]) {
    const { code, stdout, stderr } = await runCli(program, ["--x", "--help"]);
    assertEquals({ code, stderr }, { code: 0, stderr: "" });
    assertMatch(stdout, new RegExp(`^Usage: deno task ${program}\\b`, "m"));
    const long = stdout.split("\n").filter((line) => line.length > 80);
    assertEquals(long, []);
  }
});
