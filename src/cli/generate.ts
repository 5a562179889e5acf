/**
 * `deno task generate`: streams text that continues a prompt.
 *
 * @module
 */
import type { GeneratedToken } from "../generate/options.ts";
import type { Generator } from "../generate/generator.ts";
import {
  parseFlags,
  text,
  toggle,
  UsageError,
  type Values,
  wantsHelp,
} from "./flags.ts";
import { helpText } from "./help.ts";
import { INTERRUPTED } from "./interrupts.ts";
import { loadGenerator } from "./load_generator.ts";
import {
  commonFlags,
  generationOf,
  modelFlags,
  quietFlag,
  samplingFlags,
} from "./model_flags.ts";
import { Progress } from "./progress.ts";
import { type Command, runCommand } from "./run_command.ts";
import { describeStats } from "./statistics.ts";
import { faint, print, printError } from "./terminal.ts";

const promptFlags = {
  prompt: text("TEXT", "The prompt; - reads standard input"),
  "prompt-file": text("FILE", "Read the prompt from a file; - as above"),
} as const;

const outputFlags = {
  json: toggle("Print one JSON object per line instead of text, see below"),
  ...quietFlag,
  ...commonFlags,
} as const;

const flags = {
  ...promptFlags,
  ...modelFlags,
  ...samplingFlags,
  ...outputFlags,
} as const;

const help = helpText({
  summary: "Streams text that continues a prompt, with a cache that never " +
    "outgrows its budget. The text goes to standard output, progress and " +
    "statistics go to standard error.",
  usage: "deno task generate [flags] [prompt]",
  sections: {
    "Prompt": promptFlags,
    "Model and cache": modelFlags,
    "Sampling": samplingFlags,
    "Output": outputFlags,
  },
  notes: [
    'With --json there is one object per token, {"type":"token","id":…,' +
    '"text":…,"logprob":…,"position":…}, and at the end one with the ' +
    'statistics, {"type":"stats",…}.',
    "Exit status: 0 if all went well, 1 if something failed, 2 if the command " +
    "line is wrong, 130 after Ctrl-C.",
    "Examples:\n" +
    "  deno task generate 'The SELECT statement'\n" +
    "  deno task generate --budget 10% --temperature 0.7 --prompt-file a.txt\n" +
    "  echo 'A list is' | deno task generate - --policy h2o --budget 64",
  ],
});

/** The command; see {@linkcode runCommand} for what it returns. */
export const generate: Command = async (args, interrupts) => {
  if (wantsHelp(args)) {
    await print(`${help}\n`);
    return 0;
  }
  const { values, rest } = parseFlags(args, flags);
  const prompt = await readPrompt(promptSource(values, rest));
  const signal = interrupts.next();
  const { json, quiet } = values;
  await using generator = await loadGenerator(values, { signal, quiet });

  const watched = Deno.stdout.isTerminal() && !json;
  const progress = new Progress("Reading", { enabled: !quiet });
  let tokens = 0;
  try {
    const options = {
      ...generationOf(values),
      signal,
      onPrefill: (done: number, total: number) => progress.update(done, total),
    };
    for await (const token of generator.generate(prompt, options)) {
      if (tokens++ === 0) {
        await progress.stop();
        if (watched && !quiet) echo(prompt);
      }
      await print(json ? tokenLine(token) : token.text);
    }
  } catch (error) {
    if (error !== signal.reason) throw error;
  } finally {
    await progress.stop();
    if (watched && tokens > 0) await print("\n");
  }

  if (json) await print(statsLine(generator));
  else if (!quiet) {
    printError(`\n${faint(describeStats(generator.stats()))}\n`);
  }
  return signal.aborted ? INTERRUPTED : 0;
};

/** Where the prompt comes from: text, or a file. */
type PromptSource = { readonly text: string } | { readonly file: string };

/** The one place that the command line takes the prompt from. */
function promptSource(
  values: Values<typeof promptFlags>,
  rest: readonly string[],
): PromptSource {
  const { prompt, "prompt-file": file } = values;
  const texts = prompt === undefined ? rest : [prompt, ...rest];
  if (texts.length + (file === undefined ? 0 : 1) !== 1) {
    throw new UsageError(
      texts.length === 0 && file === undefined
        ? "Cannot generate without a prompt: expected --prompt, --prompt-file or one argument"
        : "Cannot use several prompts: expected one of --prompt, --prompt-file and one argument (put quotes around it)",
    );
  }
  if (file !== undefined) return { file };
  return texts[0] === "-" ? { file: "-" } : { text: texts[0]! };
}

/** Reads the prompt. A newline at the very end of a file is left out. */
async function readPrompt(source: PromptSource): Promise<string> {
  if ("text" in source) return source.text;
  const { file } = source;
  try {
    const text = file === "-"
      ? await new Response(Deno.stdin.readable).text()
      : await Deno.readTextFile(file);
    return text.replace(/\r?\n$/, "");
  } catch (cause) {
    if (!(cause instanceof Deno.errors.NotFound)) throw cause;
    throw new Error(
      `Cannot read the prompt from ${file}: there is no such file`,
      { cause },
    );
  }
}

/** Shows the end of the prompt, which the text continues. */
function echo(prompt: string): void {
  if (!Deno.stderr.isTerminal()) return;
  const lastLine = prompt.split("\n").at(-1)!;
  printError(faint(lastLine.slice(-400)));
}

function tokenLine({ id, text, logprob, position }: GeneratedToken): string {
  const token = { type: "token", id, text, logprob, position };
  return `${JSON.stringify(token)}\n`;
}

function statsLine(generator: Generator): string {
  const skippedBackends = generator.skippedBackends.map((error) => ({
    backend: error.backend,
    reason: error.reason,
    remedy: error.remedy,
  }));
  const stats = { type: "stats", ...generator.stats(), skippedBackends };
  return `${JSON.stringify(stats)}\n`;
}

if (import.meta.main) Deno.exit(await runCommand(generate, Deno.args));
