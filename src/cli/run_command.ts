/**
 * What all commands have in common: Ctrl-C, errors in one line, exit status.
 *
 * @module
 */
import { UsageError } from "./flags.ts";
import { INTERRUPTED, InterruptedError, Interrupts } from "./interrupts.ts";
import { printError } from "./terminal.ts";

/** A command: takes arguments, returns the exit status. */
export type Command = (
  args: readonly string[],
  interrupts: Interrupts,
) => Promise<number>;

/** Exit status of a program whose reader left, as a shell reports it. */
const BROKEN_PIPE = 141;

/**
 * Runs a command.
 *
 * @returns 0 if it went well, 1 if it failed, 2 if the command line is wrong,
 * 130 after Ctrl-C, 141 if nobody reads standard output any more.
 */
export async function runCommand(
  command: Command,
  args: readonly string[],
): Promise<number> {
  using interrupts = new Interrupts();
  try {
    return await command(args, interrupts);
  } catch (error) {
    if (error instanceof InterruptedError) return INTERRUPTED;
    if (error instanceof Deno.errors.BrokenPipe) return BROKEN_PIPE;
    printError(`${error instanceof Error ? error.message : String(error)}\n`);
    return error instanceof UsageError ? 2 : 1;
  }
}
