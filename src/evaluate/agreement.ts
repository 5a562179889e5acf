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

/** What two rows of logits have in common. */
interface RowComparison {
  /** Whether the largest logits are those of the same id. */
  readonly sameTop: boolean;
  /** KL(p ‖ q) in nats. */
  readonly divergence: number;
}

function compareRows(p: Float32Array, q: Float32Array): RowComparison {
  const [topP, topQ] = [argmax(p), argmax(q)];
  const [maxP, maxQ] = [p[topP]!, q[topQ]!];
  let sumP = 0;
  let sumQ = 0;
  let difference = 0;
  for (let i = 0; i < p.length; i++) {
    const weight = Math.exp(p[i]! - maxP);
    sumP += weight;
    sumQ += Math.exp(q[i]! - maxQ);
    difference += weight * (p[i]! - q[i]!);
  }
  const divergence = difference / sumP - (maxP - maxQ) -
    Math.log(sumP / sumQ);
  return { sameTop: topP === topQ, divergence };
}

/**
 * KL(p ‖ q) in nats of the distributions that two rows of logits give:
 * `Σ pᵢ (ln pᵢ − ln qᵢ)`, where `ln pᵢ` is a logit less `ln Σ exp`.
 */
export function logitDivergence(p: Float32Array, q: Float32Array): number {
  return compareRows(p, q).divergence;
}

/**
 * Compares rows of logits of texts that were read together. The rows of the
 * full cache are kept by the caller, because every policy is compared with
 * them; those of the policy are used as they come.
 *
 * @param full `(texts, tokens)` logits `(vocabulary)` under the full cache.
 * @param other For each token the logits of all texts under another cache.
 * @returns The agreement of each text.
 * @throws {RangeError} If `other` has more or fewer rows.
 */
export async function compareLogits(
  full: readonly (readonly Float32Array[])[],
  other: AsyncIterable<readonly Float32Array[]>,
): Promise<Agreement[]> {
  const sums = full.map(() => ({ same: 0, divergence: 0 }));
  const expected = full[0]?.length ?? 0;
  let tokens = 0;
  for await (const rows of other) {
    if (tokens++ >= expected) break;
    rows.forEach((row, text) => {
      const own = compareRows(full[text]![tokens - 1]!, row);
      if (own.sameTop) sums[text]!.same++;
      sums[text]!.divergence += own.divergence;
    });
  }
  if (tokens !== expected || tokens === 0) {
    throw new RangeError(
      `Cannot compare ${expected} rows of logits with ${tokens}: expected as many, and at least one`,
    );
  }
  return sums.map(({ same, divergence }) => ({
    tokens,
    sameTop: same / tokens,
    divergence: divergence / tokens,
  }));
}
