import { assertEquals, assertMatch, assertStringIncludes } from "@std/assert";

/** Whether there is a Python that is new enough. */
async function hasPython(): Promise<boolean> {
  try {
    const { success } = await new Deno.Command("python3", {
      args: ["-c", "import sys; sys.exit(sys.version_info < (3, 10))"],
    }).output();
    return success;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return false;
    throw error;
  }
}

const ignore = !await hasPython();

async function run(
  ...args: string[]
): Promise<{ code: number; output: string }> {
  const { code, stdout, stderr } = await new Deno.Command("python3", {
    args: ["tests/bench/side_by_side.py", ...args],
    env: { NO_COLOR: "1", PYTHONDONTWRITEBYTECODE: "1" },
  }).output();
  const decoder = new TextDecoder();
  return { code, output: decoder.decode(stdout) + decoder.decode(stderr) };
}

Deno.test({
  name: "side_by_side measures ours twice, and goes on after a failure",
  ignore,
  async fn() {
    const json = await Deno.makeTempFile();
    try {
      const { code, output } = await run(
        ...["--parts", "ours,attention,again", "--shapes", "tiny"],
        // A device that no PyTorch has, where there is a PyTorch at all.
        ...[
          "--backend",
          "cpu",
          "--device",
          "abacus",
          "--deno",
          Deno.execPath(),
        ],
        ...["--slots", "16", "--full", "32", "--rounds", "1", "--steps", "1"],
        ...["--json", json],
      );
      assertEquals(code, 0, output);
      assertMatch(output, /step, tiny, batch 1, keepkv:16 .* our full:32/);
      assertMatch(output, /not measured: attention, tiny: /);
      const { results, failures } = JSON.parse(
        await Deno.readTextFile(json),
      ) as {
        results: { part: string; section: string; cache: string }[];
        failures: unknown[];
      };
      for (const part of ["ours", "again"]) {
        assertEquals(
          results.filter((result) => result.part === part)
            .map(({ section, cache }) => `${section} ${cache}`),
          ["decode", "attend"].flatMap((section) =>
            ["full:16", "keepkv:16", "full:32"]
              .map((cache) => `${section} ${cache}`)
          ),
        );
      }
      assertEquals(failures.length > 0, true);
    } finally {
      await Deno.remove(json);
    }
  },
});

Deno.test({
  name: "side_by_side ends at its limit of time",
  ignore,
  async fn() {
    const { code, output } = await run(
      ...["--parts", "ours,again", "--shapes", "tiny", "--seconds", "5"],
    );
    assertEquals(code, 1);
    assertStringIncludes(output, "ours, tiny: there was no time left");
    assertStringIncludes(output, "again, tiny: there was no time left");
  },
});

Deno.test({
  name: "all of its Python compiles",
  ignore,
  async fn() {
    const script = "import ast, pathlib\n" +
      "for p in pathlib.Path('tests/bench').rglob('*.py'):\n" +
      "    ast.parse(p.read_text(), str(p))";
    const { success, stderr } = await new Deno.Command("python3", {
      args: ["-c", script],
    }).output();
    assertEquals(success, true, new TextDecoder().decode(stderr));
  },
});
