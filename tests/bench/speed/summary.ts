/** What the results say when they are put side by side. */
import type { Result } from "./results.ts";
import { number, percent } from "./table.ts";

/** Sentences about pairs of results, in the order of the sections. */
export function summarize(results: readonly Result[]): string[] {
  const of = (section: string) =>
    results.filter((result) => result.section === section);
  return [
    ...speedUps(of("decode"), ({ ms }) => 1 / ms, "a step"),
    ...merging(of("merging")),
    ...speedUps(
      of("largest"),
      ({ tokensPerSecond }) => tokensPerSecond ?? 0,
      "tokens/s at the largest batch",
    ),
    ...of("flat").map(flatness),
  ];
}

/** A smaller cache beside the largest full one of the same shape and batch. */
function speedUps(
  results: readonly Result[],
  speedOf: (result: Result) => number,
  what: string,
): string[] {
  const sentences: string[] = [];
  for (const small of results) {
    const [full] = results
      .filter((other) =>
        other.shape === small.shape && isFull(other) &&
        (other.batch === small.batch || other.section === "largest")
      )
      .sort((a, b) => b.slots - a.slots);
    if (full === undefined || isFull(small) || small.slots >= full.slots) {
      continue;
    }
    const gain = speedOf(small) / speedOf(full);
    const bound = full.section === "decode"
      ? full.bytes! / small.bytes!
      : undefined;
    sentences.push(
      `${small.shape}, batch ${small.batch}: ${what} of ${small.cache} is ${
        number(gain)
      } times as fast as of ${full.cache}` +
        (bound === undefined
          ? ` at batch ${full.batch}`
          : `; bytes allow ${number(bound)} times: ${percent(gain / bound)}`),
    );
  }
  return sentences;
}

function isFull({ cache }: Result): boolean {
  return cache.startsWith("full:");
}

/** Merging beside the same slots without. The three come one after another. */
function merging(results: readonly Result[]): string[] {
  return results.filter((_, i) => i % 3 === 0).map((merges, i) => {
    const [room, full] = results.slice(3 * i + 1, 3 * i + 3) as [
      Result,
      Result,
    ];
    const more = ({ ms }: Result) => percent(merges.ms / ms - 1);
    return `${merges.shape}, batch ${merges.batch}: a merge per step in ${merges.cache} costs ${
      more(room)
    } of a step with room for all, ${more(full)} of one of ${full.cache}`;
  });
}

function flatness({ shape, batch, cache, more }: Result): string {
  const { firstTenthMs, lastTenthMs, tokens, before, after } = more as {
    firstTenthMs: number;
    lastTenthMs: number;
    tokens: number;
    before: Record<string, number>;
    after: Record<string, number>;
  };
  const grown = Object.keys(after)
    .map((key) => `${key} ${after[key]! - before[key]!}`);
  return `${shape}, batch ${batch}, ${cache}: after ${tokens} tokens a step takes ${
    number(lastTenthMs / firstTenthMs)
  } times as long; bytes grown: ${grown.join(", ")}`;
}
