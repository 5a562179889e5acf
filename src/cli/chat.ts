/**
 * `deno task chat`: a conversation in a cache of a fixed size.
 *
 * @module
 */
import { readMessages } from "./chat_input.ts";
import { ChatSession, SESSION_COMMANDS } from "./chat_session.ts";
import { parseFlags, text, UsageError, wantsHelp } from "./flags.ts";
import { helpText } from "./help.ts";
import { loadGenerator } from "./load_generator.ts";
import {
  commonFlags,
  generationOf,
  modelFlags,
  quietFlag,
  samplingFlags,
} from "./model_flags.ts";
import { type Command, runCommand } from "./run_command.ts";
import { faint, print, printError } from "./terminal.ts";

const chatFlags = {
  system: text("TEXT", "What the model is told before the conversation"),
  ...quietFlag,
  ...commonFlags,
} as const;

const flags = { ...modelFlags, ...samplingFlags, ...chatFlags } as const;

const help = helpText({
  summary: "Answers messages, one per line, with a cache that never outgrows " +
    "its budget however long the conversation. Answers go to standard output, " +
    "everything else goes to standard error.",
  usage: "deno task chat [flags]",
  sections: {
    "Conversation": chatFlags,
    "Model and cache": modelFlags,
    "Sampling": samplingFlags,
  },
  notes: [
    `Commands in the conversation\n${SESSION_COMMANDS}`,
    "Ctrl-C stops an answer; pressed again, it leaves.",
  ],
});

/** The command; see {@linkcode runCommand} for what it returns. */
export const chat: Command = async (args, interrupts) => {
  if (wantsHelp(args)) {
    await print(`${help}\n`);
    return 0;
  }
  const { values, rest } = parseFlags(args, flags);
  if (rest.length > 0) {
    throw new UsageError(
      `Cannot use argument ${
        rest[0]
      }: expected flags only, messages are read from standard input`,
    );
  }
  const { quiet, system } = values;
  const signal = interrupts.next();
  await using generator = await loadGenerator(values, { signal, quiet });
  interrupts.finish();
  const session = new ChatSession(generator, {
    ...{ interrupts, quiet, system },
    generation: generationOf(values),
  });
  if (!quiet && Deno.stdin.isTerminal()) {
    printError(faint("Type a message, or /help for commands") + "\n");
  }
  for await (const line of readMessages()) {
    const message = line.trim();
    if (message === "/exit") break;
    if (message.startsWith("/")) session.command(message);
    else if (message !== "") await session.answer(message);
  }
  return 0;
};

if (import.meta.main) Deno.exit(await runCommand(chat, Deno.args));
