/**
 * How near a compressed cache stays to the full one, token by token.
 *
 * Both read the same text, whatever they would have said themselves, so that
 * one early difference does not count again at every later token.
 *
 * @module
 */
/** How near two sequences of next-token distributions are. */
export interface Agreement {
  /** Tokens compared. */
  readonly tokens: number;
  /** Share of tokens at which both think the same id the most likely. */
  readonly sameTop: number;
  /** Mean of KL(full ‖ other) in nats. */
  readonly divergence: number;
}

/** Index of the largest value; the lowest one where several are. */
function argmax(values: Float32Array): number {
  let best = 0;
  for (let i = 1; i < values.length; i++) {
    if (values[i]! > values[best]!) best = i;
  }
  return best;
}

/** `ln Σ exp(xᵢ)` of a row as long as a vocabulary. */
function logSum(row: Float32Array): number {
  const max = row[argmax(row)]!;
  return max + Math.log(row.reduce((sum, x) => sum + Math.exp(x - max), 0));
}

/**
 * KL(p ‖ q) in nats of the distributions that two rows of logits give:
 * `Σ pᵢ (ln pᵢ − ln qᵢ)`.
 */
export function logitDivergence(p: Float32Array, q: Float32Array): number {
  const [sumP, sumQ] = [logSum(p), logSum(q)];
  let divergence = 0;
  for (let i = 0; i < p.length; i++) {
    const logP = p[i]! - sumP;
    divergence += Math.exp(logP) * (logP - (q[i]! - sumQ));
  }
  return divergence;
}

/**
 * Compares rows of logits, both for the same tokens. The rows of the full
 * cache are kept by the caller, because every policy is compared with them;
 * those of the policy are used as they come.
 *
 * @param full Logits `(vocabulary)` under the full cache, one per token.
 * @param other Logits under another cache, in the same order.
 * @throws {RangeError} If `other` has more or fewer rows.
 */
export async function compareLogits(
  full: readonly Float32Array[],
  other: AsyncIterable<Float32Array>,
): Promise<Agreement> {
  let tokens = 0;
  let same = 0;
  let divergence = 0;
  for await (const row of other) {
    const reference = full[tokens++];
    if (reference === undefined) break;
    if (argmax(reference) === argmax(row)) same++;
    divergence += logitDivergence(reference, row);
  }
  if (tokens !== full.length || tokens === 0) {
    throw new RangeError(
      `Cannot compare ${full.length} rows of logits with ${tokens}: expected as many, and at least one`,
    );
  }
  return { tokens, sameTop: same / tokens, divergence: divergence / tokens };
}
