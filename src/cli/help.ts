/**
 * The help of a command, laid out for a terminal of 80 columns.
 *
 * @module
 */
import type { Flags } from "./flags.ts";

/** Columns that lines may take. */
const WIDTH = 80;

/** Column where the descriptions of flags start. */
const INDENT = 26;

/** A command, as its help describes it. */
export interface CommandHelp {
  /** What it does. */
  readonly summary: string;
  /** How it is called. */
  readonly usage: string;
  /** Flags under their headings. */
  readonly sections: Readonly<Record<string, Flags>>;
  /** Paragraphs at the end; lines that start with a space stay as they are. */
  readonly notes: readonly string[];
}

/** Text of the help. */
export function helpText(
  { summary, usage, sections, notes }: CommandHelp,
): string {
  const blocks = [wrap(summary), `Usage: ${usage}`];
  for (const [heading, flags] of Object.entries(sections)) {
    blocks.push([
      heading,
      ...Object.entries(flags).map(([name, { value, help }]) => {
        const left = `  --${name}${value === undefined ? "" : ` ${value}`}`;
        return left.padEnd(INDENT) + wrap(help, INDENT);
      }),
    ].join("\n"));
  }
  blocks.push(
    ...notes.map((note) => /^ /m.test(note) ? note : wrap(note)),
  );
  return blocks.join("\n\n");
}

/**
 * Breaks lines between words. The first line starts at column `indent`, the
 * others are indented to it.
 */
export function wrap(text: string, indent = 0): string {
  const lines: string[] = [];
  let line = "";
  for (const word of text.split(" ")) {
    if (line !== "" && indent + line.length + 1 + word.length > WIDTH) {
      lines.push(line);
      line = word;
    } else line = line === "" ? word : `${line} ${word}`;
  }
  return [...lines, line].join(`\n${" ".repeat(indent)}`);
}
