import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { join } from "@std/path";
import {
  readHeadLosses,
  writeHeadLosses,
} from "../../src/model/head_losses_file.ts";
import { runCli } from "./run_cli.ts";

Deno.test("calibrate says what is wrong with the command line", async () => {
  const cases: [string[], string][] = [
    [[], "expected --documents"],
    [["--documents=d", "--out=o", "--budgets=x"], "--budgets x: expected a n"],
    [
      ["--documents=d", "--out=o", "--tokens=1"],
      "--tokens 1: expected a whole",
    ],
    [["--documents=d", "--out=o", "extra"], "Cannot use argument extra"],
  ];
  for (const [args, message] of cases) {
    const { code, stdout, stderr } = await runCli("calibrate", args);
    assertEquals({ code, stdout }, { code: 2, stdout: "" }, stderr);
    assertStringIncludes(stderr, message);
  }
});

Deno.test("calibrate measures a file that generate takes", async () => {
  const folder = await Deno.makeTempDir();
  try {
    const documents = join(folder, "documents.jsonl");
    const text = "The SELECT statement reads rows from a table. ".repeat(4);
    await Deno.writeTextFile(
      documents,
      // Some of so many are of the half "tune".
      ["a", "b", "c", "d", "e", "f"].map((name) =>
        `${JSON.stringify({ source: "test", name, text })}\n`
      ).join(""),
    );
    const out = join(folder, "losses.json");
    const { code, stdout, stderr } = await runCli("calibrate", [
      ...["--backend=cpu", "--documents", documents, "--out", out, "--quiet"],
      ...["--budgets=8", "--tokens=14", "--texts=1"],
    ]);
    assertEquals({ code, stdout, stderr }, {
      code: 0,
      stdout: `${out}\n`,
      stderr: "",
    });
    const losses = await readHeadLosses(out);
    assertEquals([losses.budgets, losses.tokens], [[8], 14]);
    assertEquals(losses.loss.map((layer) => layer.length), Array(8).fill(2));
    assert(losses.loss.flat(2).every((loss) => loss > 0));
    const generated = await runCli("generate", [
      ...["--backend=cpu", "--policy=steady", "--losses", out, "--budget=32"],
      ...["--quiet", "--max-tokens=3", "The SELECT statement"],
    ]);
    assertEquals(generated.code, 0, generated.stderr);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});

Deno.test("losses are written with four digits", async () => {
  const file = await Deno.makeTempFile();
  try {
    const losses = { budgets: [8, 16], tokens: 64 };
    await writeHeadLosses(file, {
      ...losses,
      loss: [[[0.123456, 1.23456e-7]], [[1, 0]]],
    });
    assertEquals(await readHeadLosses(file), {
      ...losses,
      loss: [[[0.1235, 1.235e-7]], [[1, 0]]],
    });
  } finally {
    await Deno.remove(file);
  }
});
