/**
 * `deno task evaluate`: what compressing a cache costs, in tables and plots.
 *
 * @module
 */
import { basename, join } from "@std/path";
import { openResults, type ResultRow } from "../evaluate/results.ts";
import { renderReport } from "../evaluate/report/report.ts";
import { summarize } from "../evaluate/report/summary.ts";
import { runPlan } from "../evaluate/run.ts";
import { EvaluationProgress } from "./evaluation_progress.ts";
import { evaluationFlags, sizeFlags } from "./evaluation_flags.ts";
import { inputFlags, openInput } from "./evaluation_input.ts";
import { planOf } from "./evaluation_plan.ts";
import {
  parseFlagsOnly,
  text,
  toggle,
  UsageError,
  wantsHelp,
} from "./flags.ts";
import { helpText } from "./help.ts";
import { commonFlags, modelFolderOf } from "./model_flags.ts";
import { type Command, runCommand } from "./run_command.ts";
import { faint, print, printError } from "./terminal.ts";

/** Folder that results go to where there is no `--out`. */
const DEFAULT_OUT = "evaluation";

const outputFlags = {
  out: text("FOLDER", `Where results go (default: ${DEFAULT_OUT})`),
  resume: toggle("Go on with the results in that folder"),
  quiet: toggle("Print nothing but the path of the report"),
  ...commonFlags,
} as const;

const flags = {
  ...inputFlags,
  ...evaluationFlags,
  ...sizeFlags,
  ...outputFlags,
} as const;

const help = helpText({
  summary: "Measures policies against the full cache and each other, and " +
    "writes results.jsonl, summary.json and report.html. A run that was cut " +
    "off goes on with --resume.",
  usage: "deno task evaluate --documents FILE [flags]",
  sections: {
    "Input": inputFlags,
    "What is measured": evaluationFlags,
    "Sizes": sizeFlags,
    "Output": outputFlags,
  },
  notes: [
    "Flags that take lists may be repeated, or have commas: --budget 10%,20%.",
    "Results of the settings are never mixed: whole reads a prompt in one " +
    "piece and compresses it once, as in the papers; streaming reads it in " +
    "chunks, in constant memory.",
    "Exit status: 0 if all went well, 1 if something failed, 2 if the command " +
    "line is wrong, 130 after Ctrl-C.",
  ],
});

/** The command; see {@linkcode runCommand} for what it returns. */
export const evaluate: Command = async (args, interrupts) => {
  if (wantsHelp(args)) {
    await print(`${help}\n`);
    return 0;
  }
  const values = parseFlagsOnly(args, flags);
  const folder = await modelFolderOf(values);
  const plan = await planOf(values, folder);
  const { out = DEFAULT_OUT, resume, quiet } = values;
  const signal = interrupts.next();
  await using input = await openInput(values, { folder, quiet, signal });
  const { documents, model } = input;
  const results = await prepareFolder(out, resume);
  const progress = new EvaluationProgress({ enabled: !quiet });
  let rows: ResultRow[];
  try {
    rows = await runPlan({
      model,
      documents,
      plan,
      results: await openResults(results),
      onProgress: (at) => progress.update(at),
      signal,
    });
  } catch (error) {
    if (signal.aborted && !quiet) {
      printError(faint(`Go on with --out ${out} --resume`) + "\n");
    }
    throw error;
  } finally {
    await progress.stop();
  }
  const summary = summarize(rows);
  const report = join(out, "report.html");
  await Deno.writeTextFile(
    join(out, "summary.json"),
    `${JSON.stringify(summary, null, 2)}\n`,
  );
  await Deno.writeTextFile(
    report,
    renderReport(summary, {
      facts: [
        ["Device", model.backend.description],
        ["Documents", `${basename(input.file)}, ${halfName(plan.half)}`],
        ["Seeds", plan.seeds.join(", ")],
        ["Chunk, streaming", `${plan.chunk} tokens`],
      ],
    }),
  );
  await print(`${report}\n`);
  return 0;
};

function halfName(half: "tune" | "report" | "all"): string {
  return half === "all" ? "all" : `half "${half}"`;
}

/**
 * Makes the folder of the results and returns the path of the results in it.
 *
 * @throws {UsageError} If there are results that one did not ask to go on with.
 */
async function prepareFolder(out: string, resume: boolean): Promise<string> {
  await Deno.mkdir(out, { recursive: true });
  const file = join(out, "results.jsonl");
  const there = await Deno.stat(file).then(() => true, () => false);
  if (!there || resume) return file;
  throw new UsageError(
    `Cannot start in ${out}: it has results already: use --resume to go on with them, or another --out`,
  );
}

if (import.meta.main) Deno.exit(await runCommand(evaluate, Deno.args));
