/** Timing of what a device does without being waited for. */

/** Something to time. */
export interface Timed {
  /** Enqueues one round of work. */
  enqueue(): void;
  /** Resolves once the device is done. */
  done(): Promise<void>;
}

/** Milliseconds of each round. */
export interface Times {
  /** From the first call to the end of the work on the device. */
  readonly total: number[];
  /** Until everything was enqueued. */
  readonly host: number[];
}

/**
 * Times several subjects in turn, so that all of them see the same drift of
 * clocks and temperature. One round of each warms up.
 */
export async function timeInTurn(
  subjects: readonly Timed[],
  rounds: number,
): Promise<Times[]> {
  const times = subjects.map((): Times => ({ total: [], host: [] }));
  for (let round = 0; round <= rounds; round++) {
    for (const [i, subject] of subjects.entries()) {
      const begin = performance.now();
      subject.enqueue();
      const enqueued = performance.now();
      await subject.done();
      const end = performance.now();
      if (round === 0) continue;
      times[i]!.total.push(end - begin);
      times[i]!.host.push(enqueued - begin);
    }
  }
  return times;
}

/** The middle of some numbers. */
export function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  const middle = (sorted.length - 1) / 2;
  return (sorted[Math.floor(middle)]! + sorted[Math.ceil(middle)]!) / 2;
}
