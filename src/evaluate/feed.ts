/**
 * Cutting prompts so that what belongs together stays together.
 *
 * @module
 */
import type { Schedule } from "../policies/parts.ts";
import { promptPieces } from "../policies/schedule.ts";

/**
 * Cuts ids into the pieces of a schedule; where there are several, the first
 * one has what is left over. So the end of a prompt, where a question stands,
 * is never cut from what is before it unless it is longer than a chunk.
 *
 * @throws {RangeError} If the schedule reads prompts whole, and this one is
 * too long.
 */
export function piecesFromEnd(
  ids: readonly number[],
  schedule: Schedule,
): (readonly number[])[] {
  if (schedule.kind === "whole") return promptPieces(ids, schedule);
  const first = ids.length % schedule.chunk;
  const rest = promptPieces(ids.slice(first), schedule);
  return first === 0 ? rest : [ids.slice(0, first), ...rest];
}
