/**
 * How a schedule cuts prompts into the pieces that are compressed.
 *
 * @module
 */
import type { Schedule } from "./parts.ts";

/** Tokens that are read before a compression, at most. */
export function longestPiece(schedule: Schedule): number {
  return schedule.kind === "whole" ? schedule.longest : schedule.chunk;
}

/**
 * Cuts a prompt into the pieces that are read one after the other, each
 * compressed at its end.
 *
 * @throws {RangeError} If the prompt has to be read in one piece and is too
 * long for it.
 */
export function promptPieces(
  ids: readonly number[],
  schedule: Schedule,
): (readonly number[])[] {
  if (schedule.kind === "whole") {
    checkLength(ids.length, schedule.longest);
    return [ids];
  }
  const { chunk } = schedule;
  return Array.from(
    { length: Math.ceil(ids.length / chunk) },
    (_, i) => ids.slice(i * chunk, (i + 1) * chunk),
  );
}

/**
 * Checks that tokens may be read at once.
 *
 * @throws {RangeError} If they are more than `longest`.
 */
export function checkLength(length: number, longest: number): void {
  if (length <= longest) return;
  throw new RangeError(
    `Cannot read ${length} tokens in one piece: expected at most ${longest}, as the policy's schedule says`,
  );
}
