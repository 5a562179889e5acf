import { assertEquals, assertGreater, assertRejects } from "@std/assert";
import { fromFileUrl, join } from "@std/path";
import { evaluationFlags, sizeFlags } from "../../src/cli/evaluation_flags.ts";
import { planOf } from "../../src/cli/evaluation_plan.ts";
import { ModelFormatError } from "../../src/errors.ts";
import { parseFlags, UsageError } from "../../src/cli/flags.ts";

function planFor(model: string, ...args: string[]) {
  const { values } = parseFlags(args, { ...evaluationFlags, ...sizeFlags });
  return planOf(values, model);
}

/** Only plans that ask for the losses of the model read its folder. */
const plan = (...args: string[]) => planFor("no/model", ...args);

Deno.test("flags beside a plan change what it says", async () => {
  const file = await Deno.makeTempFile({ suffix: ".json" });
  try {
    await Deno.writeTextFile(
      file,
      JSON.stringify({
        policies: [
          { policy: "keepkv", label: "zip", options: { key: "zip" } },
          { policy: "keepkv" },
          { policy: "weightedkv" },
        ],
        budgets: [64],
        batch: 2,
        tasks: [
          { kind: "perplexity", prompt: 64, continuation: 16, documents: 3 },
          { kind: "retrieval", form: "chat", lengths: [80], depths: [0.5] },
        ],
      }),
    );
    const own = await plan("--plan", file);
    assertEquals(own.policies.length, 3);
    const changed = await plan(
      ...["--plan", file, "--policy=keepkv,h2o", "--budget=20%,1MiB"],
      ...["--prompt=128", "--length=90", "--batch=8", "--half=tune"],
    );
    assertEquals(
      changed.policies.map(({ label }) => label),
      ["zip", "keepkv", "h2o"],
    );
    assertEquals(changed.budgets, [{ ratio: 0.2 }, { bytes: 2 ** 20 }]);
    assertEquals([changed.batch, changed.half], [8, "tune"]);
    assertEquals(changed.tasks, [
      { kind: "perplexity", prompt: 128, continuation: 16, documents: 3 },
      { kind: "retrieval", form: "chat", lengths: [90], depths: [0.5] },
    ]);
    await assertRejects(
      () => plan("--plan", file, "--tasks=needle"),
      UsageError,
      "Cannot change the tasks of --plan",
    );
  } finally {
    await Deno.remove(file);
  }
});

Deno.test("a plan names files of losses, its own or the model's", async () => {
  const folder = await Deno.makeTempDir();
  try {
    const losses = { budgets: [16], tokens: 64, loss: [[[0.5, 0.25]]] };
    const write = (name: string, value: unknown) =>
      Deno.writeTextFile(join(folder, name), JSON.stringify(value));
    await write("losses.json", { ...losses, loss: [[[0.5], [0.25]]] });
    await write("wrong.json", losses);
    const file = join(folder, "plan.json");
    const planWith = async (path: unknown) => {
      const heads = { kind: "losses", losses: path };
      await write("plan.json", {
        policies: [
          { policy: "steady", options: { losses: path, sinks: 2 } },
          { policy: "h2o", options: { allocate: { heads } } },
        ],
        budgets: [64],
        tasks: [{ kind: "perplexity", prompt: 64, continuation: 16 }],
      });
      return await planFor(folder, "--plan", file);
    };
    await write("head_losses.json", { ...losses, loss: [[[0.5], [0.125]]] });
    const files = [["losses.json", 0.25], [true, 0.125]] as const;
    for (const [path, loss] of files) {
      const { policies } = await planWith(path);
      const { allocate, select } = policies[0]!.create(32);
      assertEquals(allocate.heads, {
        kind: "losses",
        losses: { ...losses, loss: [[[0.5], [loss]]] },
      });
      assertEquals(select.sinks, 2);
      assertEquals(policies[1]!.create(32).allocate.heads, allocate.heads);
    }
    await assertRejects(
      () => planWith("wrong.json"),
      ModelFormatError,
      'wrong.json: loss[0][0] is "2 entries": expected a list of 1 entries',
    );
    await assertRejects(
      () => planWith("none.json"),
      ModelFormatError,
      "missing",
    );
    await assertRejects(() => planWith(5), TypeError, "budgets is missing");
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});

Deno.test("without a plan, flags make one", async () => {
  const { policies, tasks } = await plan(
    "--policy=h2o",
    "--tasks=perturbation",
  );
  assertEquals(policies.map(({ label }) => label), ["h2o"]);
  assertEquals(tasks, [{ kind: "perturbation", prompt: 512, probes: 8 }]);
});

Deno.test("the plans of the report are plans", async () => {
  const folder = new URL("../../docs/plans/", import.meta.url);
  const files = (await Array.fromAsync(Deno.readDir(folder)))
    .map(({ name }) => name).filter((name) => name.endsWith(".json"));
  assertGreater(files.length, 0);
  for (const name of files) {
    const { half } = await planFor(
      "examples/models/docs-7m",
      "--plan",
      fromFileUrl(new URL(name, folder)),
    );
    assertEquals(half, "report", name);
  }
});
