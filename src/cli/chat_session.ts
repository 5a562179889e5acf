/**
 * One conversation: its history, and the commands that a user may type.
 *
 * @module
 */
import type { Generator } from "../generate/generator.ts";
import type { ChatOptions } from "../generate/options.ts";
import type { ChatMessage } from "../tokens/chat_template.ts";
import type { Interrupts } from "./interrupts.ts";
import { Progress } from "./progress.ts";
import { describeAnswer, describeStats } from "./statistics.ts";
import { faint, print, printError } from "./terminal.ts";

/** The commands that {@linkcode ChatSession.command} obeys, for the help. */
export const SESSION_COMMANDS =
  `  /reset         Forget the conversation, but not what /system said
  /system TEXT   Forget everything and tell the model TEXT first, or nothing
  /stats         Print statistics of the last answer
  /help          Print these commands
  /exit          Leave (also Ctrl-D)`;

/** Options of a {@linkcode ChatSession}. */
export interface ChatSessionOptions {
  /** What Ctrl-C does while an answer is streamed. */
  readonly interrupts: Interrupts;
  /** How answers are generated. */
  readonly generation: ChatOptions;
  /** Whether nothing but answers is printed. */
  readonly quiet: boolean;
  /** What the model is told before the conversation. */
  readonly system?: string | undefined;
}

/** A conversation with a model. */
export class ChatSession {
  readonly #generator: Generator;
  readonly #options: ChatSessionOptions;
  #system: string | undefined;
  #history: readonly ChatMessage[] = [];

  /** Constructs a conversation in which nothing has been said. */
  constructor(generator: Generator, options: ChatSessionOptions) {
    this.#generator = generator;
    this.#options = options;
    this.#reset(options.system);
  }

  #reset(system: string | undefined): void {
    this.#generator.reset();
    this.#system = system;
    this.#history = system ? [{ role: "system", content: system }] : [];
  }

  /** Obeys a line that begins with a slash. */
  command(line: string): void {
    const [name, ...words] = line.split(" ");
    if (name === "/reset") this.#reset(this.#system);
    else if (name === "/system") this.#reset(words.join(" "));
    else if (name === "/stats") {
      printError(`${describeStats(this.#generator.stats())}\n`);
    } else if (name === "/help") printError(`${SESSION_COMMANDS}\n`);
    else {
      printError(
        `Cannot obey ${name}: expected a command that /help lists\n`,
      );
    }
  }

  /**
   * Streams the answer to a message. A conversation goes on after an answer
   * that failed: the error is printed and the message is forgotten.
   *
   * @throws {Deno.errors.BrokenPipe} If nobody reads the answer any more.
   */
  async answer(message: string): Promise<void> {
    const { interrupts, generation, quiet } = this.#options;
    const asked = [...this.#history, { role: "user", content: message }];
    const signal = interrupts.next();
    const progress = new Progress("Reading", { enabled: !quiet });
    const options: ChatOptions = {
      ...generation,
      signal,
      onPrefill: (done, total) => progress.update(done, total),
    };
    let content = "";
    let failure: unknown;
    try {
      for await (const { text } of this.#generator.chat(asked, options)) {
        await progress.stop();
        content += text;
        await print(text);
      }
    } catch (error) {
      if (error instanceof Deno.errors.BrokenPipe) throw error;
      failure = error;
    } finally {
      await progress.stop();
      interrupts.finish();
    }
    const failed = failure !== undefined;
    if (!failed || content !== "") await print("\n");
    if (failed && failure !== signal.reason) {
      printError(`${failure instanceof Error ? failure.message : failure}\n`);
      return;
    }
    // What the user saw is what was said, even where it was cut short.
    if (!failed || content !== "") {
      this.#history = [...asked, { role: "assistant", content }];
    }
    if (!quiet) {
      printError(`${faint(describeAnswer(this.#generator.stats()))}\n`);
    }
  }
}
