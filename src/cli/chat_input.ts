/**
 * Lines that a user types, or that a program pipes in.
 *
 * @module
 */

/**
 * Yields one message per line until the input ends.
 *
 * In a terminal the line can be edited. Everywhere else lines are taken from
 * standard input as they come, with no prompt in the output.
 */
export async function* readMessages(): AsyncGenerator<string, void, undefined> {
  if (Deno.stdin.isTerminal() && Deno.stdout.isTerminal()) {
    for (let line; (line = prompt(">")) !== null;) yield line;
    return;
  }
  let rest = "";
  for await (
    const text of Deno.stdin.readable.pipeThrough(new TextDecoderStream())
  ) {
    const lines = (rest + text).split(/\r?\n/);
    rest = lines.pop()!;
    yield* lines;
  }
  if (rest !== "") yield rest;
}
