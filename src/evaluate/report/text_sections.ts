/**
 * Sections of a report on text: perplexity, agreement, merging.
 *
 * @module
 */
import { histogram } from "./bar_plot.ts";
import {
  compact,
  decimals,
  interval,
  percent,
  probability,
  signed,
} from "./format.ts";
import { linePlot } from "./line_plot.ts";
import { type Markup, markup } from "./markup.ts";
import { MEMORY_AXIS, qualitySeries, type ReportContext } from "./quality.ts";
import type {
  AgreementTable,
  MergeTable,
  PerplexityPair,
  PerplexityTable,
} from "./summarize_text.ts";
import { matrixTable, variantTable, verdictOf } from "./table.ts";

const NATS = signed(4);

/** Perplexity: table, plot, and policies against each other. */
export function perplexitySection(
  { task, entries, pairs }: PerplexityTable,
  context: ReportContext,
): Markup {
  const documents = Math.max(...entries.map(({ excess }) => excess.count));
  const table = variantTable(entries, [
    {
      head: "Perplexity",
      cell: ({ perplexity }) => interval(perplexity, decimals(3)),
      rank: ({ perplexity }) => perplexity.mean,
    },
    {
      head: "Loss above full, nats",
      cell: ({ excess, budget }) =>
        budget === "full" ? "" : interval(excess, NATS),
    },
    {
      head: "Perplexity above full",
      cell: ({ excess, budget }) =>
        budget === "full"
          ? ""
          : `${signed(1)(100 * Math.expm1(excess.mean))} %`,
    },
    {
      head: "p",
      cell: ({ excess, budget }) =>
        budget === "full" ? "" : probability(excess.p),
    },
  ]);
  const series = qualitySeries(entries, context, ({ budget, excess }) => ({
    y: excess.mean,
    low: excess.low,
    high: excess.high,
    title: `${budget}: ${NATS(excess.mean)} nats`,
  }));
  const plot = series.length === 0 ? undefined : linePlot({
    title: `${task}: loss above the full cache against memory`,
    ...MEMORY_AXIS,
    yLabel: "loss above the full cache, nats per token",
    baseline: { y: 0, label: "full cache" },
    series,
  });
  const matrices = [...Map.groupBy(pairs, ({ budget }) => budget)]
    .map(([budget, pairs]) => pairMatrix(budget, pairs));
  return markup`<h3>${task}</h3>
<p class="note">Tokens of prompt and continuation; the continuation is scored token by
token. Means over ${documents} documents, each counted once, with 95 % bootstrap
intervals; p of the sign test against the full cache.</p>
${table}${plot}${matrices}`;
}

/** The differences of every two policies at a budget. */
function pairMatrix(
  budget: string,
  pairs: readonly PerplexityPair[],
): Markup {
  const policies = [...new Set(pairs.flatMap(({ a, b }) => [a, b]))];
  const matrix = matrixTable("loss minus", policies, (row, column) => {
    const pair = pairs.find(({ a, b }) =>
      a === row && b === column || a === column && b === row
    );
    if (pair === undefined) return undefined;
    const sign = pair.a === row ? 1 : -1;
    const { mean, low, high, count } = pair.difference;
    const [from, to] = sign > 0 ? [low, high] : [-high, -low];
    const difference = { mean: sign * mean, low: from, high: to, count };
    return {
      content: interval(difference, NATS),
      verdict: verdictOf(difference, { border: 0, better: "below" }),
    };
  });
  return markup`<details><summary>Policies against each other at ${budget}</summary>
<p class="note">Loss of the row minus loss of the column on the same documents, nats
per token. Colored where the interval excludes 0: green where the row is better.</p>
${matrix}</details>
`;
}

/** Agreement with the full cache: table and plot. */
export function agreementSection(
  { task, entries }: AgreementTable,
  context: ReportContext,
): Markup {
  const table = variantTable(entries, [
    {
      head: "Same top token",
      cell: ({ sameTop }) => interval(sameTop, percent(1)),
      rank: ({ sameTop }) => -sameTop.mean,
    },
    {
      head: "KL, nats",
      cell: ({ divergence }) => interval(divergence, decimals(4)),
      rank: ({ divergence }) => divergence.mean,
    },
    { head: "Tokens", cell: ({ tokens }) => tokens },
  ]);
  const plot = linePlot({
    title: `${task}: KL against memory`,
    ...MEMORY_AXIS,
    yLabel: "KL(full ‖ policy), nats per token",
    baseline: { y: 0, label: "full cache" },
    series: qualitySeries(entries, context, ({ budget, divergence }) => ({
      y: divergence.mean,
      low: divergence.low,
      high: divergence.high,
      title: `${budget}: ${decimals(4)(divergence.mean)} nats`,
    })),
  });
  return markup`<h3>${task}</h3>
<p class="note">Next-token distributions on the same text: how often both caches think
the same token the most likely, and KL(full ‖ policy).</p>
${table}${plot}`;
}

/** What merging did: table and histograms of votes. */
export function mergeSection(
  { task, entries }: MergeTable,
  { indexOf }: ReportContext,
): Markup {
  const table = variantTable(entries, [
    { head: "Merged", cell: ({ merged }) => compact(merged) },
    { head: "Dropped", cell: ({ dropped }) => compact(dropped) },
    {
      head: "Tokens dropped",
      cell: ({ droppedTokens }) => compact(droppedTokens),
    },
    {
      head: "ZIP guarded",
      cell: ({ guardedShare }) => percent(1)(guardedShare),
    },
    {
      head: "KL per merge, nats",
      cell: ({ divergence }) => decimals(4)(divergence),
    },
  ]);
  const merging = entries.filter(({ merged }) => merged > 0);
  const bins = Math.max(0, ...merging.map(({ votes }) => votes.length));
  const labels = Array.from({ length: bins }, (_, bin) => String(2 ** bin));
  const histograms = merging.map(({ policy, budget, votes }) =>
    histogram({
      title: `${policy}, ${budget}`,
      index: indexOf(policy),
      labels,
      shares: votes,
      xLabel: "votes, up to the next power of two",
    })
  );
  const gallery = merging.length === 0
    ? undefined
    : markup`<h4>Votes of live slots at the end</h4>
<div class="gallery">${histograms}</div>`;
  return markup`<h3>Merges in ${task}</h3>
<p class="note">Slots per layer and text, over all KV heads. KL of merge weights from
vote shares is the logarithm of what a merge without correction would overstate
the mass of its slot by.</p>
${table}${gallery}`;
}
