/**
 * Standard output for the text, standard error for everything else.
 *
 * @module
 */

const encoder = new TextEncoder();

/**
 * Writes text to standard output, all of it.
 *
 * @throws {Deno.errors.BrokenPipe} If nobody reads it any more.
 */
export async function print(text: string): Promise<void> {
  const bytes = encoder.encode(text);
  for (let at = 0; at < bytes.length;) {
    at += await Deno.stdout.write(bytes.subarray(at));
  }
}

/** Writes text to standard error; a reader who left does not matter. */
export function printError(text: string): void {
  try {
    const bytes = encoder.encode(text);
    for (let at = 0; at < bytes.length;) {
      at += Deno.stderr.writeSync(bytes.subarray(at));
    }
  } catch (error) {
    if (!(error instanceof Deno.errors.BrokenPipe)) throw error;
  }
}

/** Text that stands back, where standard error is a terminal with colours. */
export function faint(text: string): string {
  return Deno.stderr.isTerminal() && !Deno.noColor
    ? `\x1b[2m${text}\x1b[22m`
    : text;
}
