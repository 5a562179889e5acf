/** What was measured, and how it stands beside what is possible. */
import { boundOf, type Ceilings, type Work } from "./bounds.ts";
import { median, type Times } from "./clock.ts";

/** One line of a table. */
export interface Result {
  /** What was measured: `decode`, `prefill`, … */
  readonly section: string;
  readonly shape: string;
  /** The cache, as `policy:slots`, and what is special about it. */
  readonly cache: string;
  /** Sequences in one step. */
  readonly batch: number;
  /** Slots per head, on average over the measurement. */
  readonly slots: number;
  /** Median milliseconds of one step, prompt or layer. */
  readonly ms: number;
  /** The same of each round. */
  readonly rounds: readonly number[];
  /** Microseconds of the host for enqueueing one step. */
  readonly hostUs?: number;
  /** Tokens a second, over all sequences. */
  readonly tokensPerSecond?: number;
  /** Bytes that have to be read. */
  readonly bytes?: number;
  /** Operations, two for each product. */
  readonly operations?: number;
  /** The least milliseconds that the ceilings allow. */
  readonly boundMs?: number;
  /** Share of the bound: `boundMs / ms`. */
  readonly ofBound?: number;
  /** Share of the read stream: bytes over time over the measured stream. */
  readonly ofStream?: number;
  /** Share of the matrix rate. */
  readonly ofMatrix?: number;
  /** Bytes of the backend. */
  readonly deviceBytes?: number;
  /** Whatever else belongs to it. */
  readonly more?: Readonly<Record<string, unknown>>;
}

/** A measurement that could not be made, or for which there was no time. */
export interface Failure {
  readonly section: string;
  readonly shape: string;
  /** What should have been measured. */
  readonly what: string;
  readonly reason: string;
}

/** Names of what was measured. */
export type Named = Pick<
  Result,
  "section" | "shape" | "cache" | "batch" | "slots"
>;

/**
 * A line from times.
 *
 * @param units Steps, prompts or layers that each round is made of.
 * @param tokens Tokens that come out of each of them.
 */
export function resultOf(
  named: Named,
  { total, host }: Times,
  { units, tokens, work, ceilings, ...rest }: {
    units: number;
    tokens?: number;
    work?: Work;
    ceilings: Ceilings;
    deviceBytes?: number;
    more?: Readonly<Record<string, unknown>>;
  },
): Result {
  const rounds = total.map((ms) => ms / units);
  const ms = median(rounds);
  const boundMs = work && boundOf(work, ceilings);
  const { stream, matrix } = ceilings;
  return {
    ...named,
    ms,
    rounds,
    hostUs: median(host) / units * 1000,
    ...(tokens !== undefined && { tokensPerSecond: tokens / ms * 1000 }),
    ...work,
    ...(boundMs !== undefined && { boundMs, ofBound: boundMs / ms }),
    ...(work && stream !== undefined && {
      ofStream: work.bytes / stream * 1000 / ms,
    }),
    ...(work && matrix !== undefined && {
      ofMatrix: work.operations / matrix * 1000 / ms,
    }),
    ...rest,
  };
}
