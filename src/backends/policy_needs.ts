/**
 * What kernels keep and look at for a policy, whatever device they run on.
 *
 * @module
 */
import type { Policy, Score } from "../policies/parts.ts";

/** Whether a score is worked out from all keys of a head, without any row. */
export function takesAllKeys({ kind }: Score): boolean {
  return kind === "keyDistance" || kind === "expected";
}

/**
 * Whether anything reads the scores of slots. Where nothing does, kernels do
 * not keep them.
 */
export function needsScores({ score, merge }: Policy): boolean {
  return merge.kind !== "never" &&
    (merge.kind !== "drop" ||
      score.kind !== "position" && !takesAllKeys(score));
}
