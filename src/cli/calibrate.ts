/**
 * `deno task calibrate`: what a model loses by compressing each of its heads.
 *
 * @module
 */
import { join } from "@std/path";
import { halfOf } from "../evaluate/documents.ts";
import { measureHeadLosses } from "../evaluate/head_losses.ts";
import { selectWindows } from "../evaluate/windows.ts";
import {
  HEAD_LOSSES_FILE,
  writeHeadLosses,
} from "../model/head_losses_file.ts";
import type { HeadLosses } from "../policies/allocations/head_losses.ts";
import { numbers } from "./evaluation_flags.ts";
import { inputFlags, openInput } from "./evaluation_input.ts";
import { parseFlagsOnly, text, toggle, wantsHelp, whole } from "./flags.ts";
import { helpText } from "./help.ts";
import { commonFlags, modelFolderOf } from "./model_flags.ts";
import { Progress } from "./progress.ts";
import { type Command, runCommand } from "./run_command.ts";
import { print } from "./terminal.ts";

/** Slots that heads are compressed to where there is no `--budgets`. */
const BUDGETS = [24, 48, 96, 192, 384];

/** Tokens of a text where there is no `--tokens`. */
const TOKENS = 640;

/** Texts where there is no `--texts`. */
const TEXTS = 4;

const sizeFlags = {
  budgets: numbers(
    "N",
    `Slots of the one head that is compressed (default: ${BUDGETS.join(", ")})`,
  ),
  tokens: whole("N", {
    help: `Tokens of a text, above the largest budget (default: ${TOKENS})`,
    from: 2,
  }),
  texts: whole("N", {
    help: `Texts, each from another document (default: ${TEXTS})`,
    from: 1,
  }),
} as const;

const outputFlags = {
  out: text(
    "FILE",
    `Where the losses go, as JSON (default: ${HEAD_LOSSES_FILE} of the model)`,
  ),
  quiet: toggle("Print nothing but the path of the file"),
  ...commonFlags,
} as const;

const flags = { ...inputFlags, ...sizeFlags, ...outputFlags } as const;

const help = helpText({
  summary:
    "Measures what a model loses when the policy steady compresses one " +
    "head and leaves all others as they are, for every head and some budgets. " +
    "The policy steady spreads its budget over the heads by it, where the " +
    "file is in the model's folder or named by --losses.",
  usage: "deno task calibrate --documents FILE [flags]",
  sections: {
    "Input": inputFlags,
    "Sizes": sizeFlags,
    "Output": outputFlags,
  },
  notes: [
    'Texts are of the half "tune" of the documents only, so that the half ' +
    '"report" stays unseen.',
    "All texts are read together, once for every layer, KV head and budget: " +
    "a model of 8 layers and 2 KV heads takes 80 runs with the defaults.",
    "Exit status: 0 if all went well, 1 if something failed, 2 if the command " +
    "line is wrong, 130 after Ctrl-C.",
  ],
});

/** The command; see {@linkcode runCommand} for what it returns. */
export const calibrate: Command = async (args, interrupts) => {
  if (wantsHelp(args)) {
    await print(`${help}\n`);
    return 0;
  }
  const values = parseFlagsOnly(args, flags);
  const folder = await modelFolderOf(values);
  const { out = join(folder, HEAD_LOSSES_FILE), quiet } = values;
  const signal = interrupts.next();
  await using input = await openInput(values, { folder, quiet, signal });
  const { documents, model } = input;
  const windows = selectWindows(
    documents.filter((document) => halfOf(document) === "tune"),
    model.codec,
    {
      prompt: 1,
      continuation: (values.tokens ?? TOKENS) - 1,
      documents: values.texts ?? TEXTS,
    },
  );
  const texts = windows.map((w) => [...w.prompt, ...w.continuation]);
  const measuring = new Progress("Measure", { enabled: !quiet });
  let losses: HeadLosses;
  try {
    losses = await measureHeadLosses(model, texts, {
      budgets: values.budgets ?? BUDGETS,
      onProgress: (done, total) => measuring.update(done, total),
      signal,
    });
  } finally {
    await measuring.stop();
  }
  await writeHeadLosses(out, losses);
  await print(`${out}\n`);
  return 0;
};

if (import.meta.main) Deno.exit(await runCommand(calibrate, Deno.args));
