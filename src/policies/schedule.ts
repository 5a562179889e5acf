/**
 * The pieces of a prompt that a policy reads at once, and what it reads with
 * them.
 *
 * @module
 */
import type { Policy, Schedule } from "./parts.ts";

/** Tokens that are read before a compression, at most. */
export function longestPiece(schedule: Schedule): number {
  return schedule.kind === "whole" ? schedule.longest : schedule.chunk;
}

/** Ids that are read after each piece of a prompt, and observed only. */
export function guestTokens({ probe }: Policy): readonly number[] {
  return probe.kind === "instruction" ? probe.tokens : [];
}

/** Rows that the stage of a cache needs: the longest piece and its guests. */
export function stageRows(policy: Policy): number {
  return longestPiece(policy.schedule) + guestTokens(policy).length;
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
