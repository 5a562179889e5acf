/**
 * Text around facts, and where facts are put into it.
 *
 * @module
 */
import type { EvaluationModel } from "./model.ts";
import type { Random } from "./random.ts";

/** What counts tokens. */
type Coder = Pick<EvaluationModel, "codec">;

/** Lines too long for what is left that may be passed over. */
const MISSES = 20;

/** The lines of documents that are not blank. */
export function fillerLines(
  documents: readonly { readonly text: string }[],
): string[] {
  return documents.flatMap(({ text }) =>
    text.split("\n").filter((line) => line.trim() !== "")
  );
}

/** Tokens of a line and its end. */
export function lineTokens(
  { codec }: Coder,
  line: string,
): number {
  return codec.encode(`${line}\n`, { addSpecialTokens: false }).length;
}

/**
 * Checks that tokens are left.
 *
 * @throws {RangeError} If there are less than none.
 */
export function checkRoom(room: number): void {
  if (room >= 0) return;
  throw new RangeError(
    `Cannot hide a fact: facts and question have ${-room} tokens more than the length, expected a longer one`,
  );
}

/** Consecutive lines from a random place, as many as there is room for. */
export function takeFiller(
  filler: readonly string[],
  { model, room, random }: {
    model: Coder;
    room: number;
    random: Random;
  },
): { lines: string[]; tokens: number[] } {
  checkRoom(room);
  const lines: string[] = [];
  const tokens: number[] = [];
  const start = random.below(filler.length);
  let misses = 0;
  // Once around at most: a short text is not repeated to make a long one.
  for (let i = 0; i < filler.length && misses < MISSES; i++) {
    const line = filler[(start + i) % filler.length]!;
    const count = lineTokens(model, line);
    if (count > room) {
      misses++;
      continue;
    }
    room -= count;
    lines.push(line);
    tokens.push(count);
  }
  return { lines, tokens };
}

/** Puts each hidden line where its share of the tokens is before it. */
export function hide(
  lines: readonly string[],
  tokens: readonly number[],
  hidden: readonly { line: string; depth: number }[],
): string[] {
  const total = tokens.reduce((a, b) => a + b, 0);
  const byDepth = hidden.toSorted((a, b) => a.depth - b.depth);
  const result: string[] = [];
  let before = 0;
  let next = 0;
  for (let i = 0; i <= lines.length; i++) {
    while (
      next < byDepth.length &&
      (i === lines.length || before >= byDepth[next]!.depth * total)
    ) result.push(byDepth[next++]!.line);
    if (i === lines.length) break;
    result.push(lines[i]!);
    before += tokens[i]!;
  }
  return result;
}
