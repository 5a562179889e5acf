/**
 * Sections of a report on retrieval, attention and speed.
 *
 * @module
 */
import { bytes, compact, decimals, interval, percent } from "./format.ts";
import { heatMap } from "./heat_map.ts";
import { linePlot } from "./line_plot.ts";
import { type Markup, markup } from "./markup.ts";
import { MEMORY_AXIS, qualitySeries, type ReportContext } from "./quality.ts";
import type {
  PerturbationEntry,
  PerturbationTable,
} from "./summarize_perturbation.ts";
import type { RetrievalTable } from "./summarize_retrieval.ts";
import type { ThroughputTable } from "./summary.ts";
import { matrixTable, variantTable, verdictOf } from "./table.ts";

const FORMS = {
  needle: "One needle",
  needles: "Several needles",
  ledger: "Ledger",
  chat: "Chat",
} as const;

const QUESTIONS = {
  seen: "question seen at compression time",
  probe: "question as probe",
  unseen: "question not seen",
} as const;

/** Facts found: table, plot and heat maps. */
export function retrievalSection(
  { form, question, entries }: RetrievalTable,
  context: ReportContext,
): Markup {
  const title = `${FORMS[form]}, ${QUESTIONS[question]}`;
  const table = variantTable(entries, [
    {
      head: "Exact answers",
      cell: ({ accuracy }) => interval(accuracy, percent(1)),
      rank: ({ accuracy }) => -accuracy.mean,
    },
    { head: "Tasks", cell: ({ accuracy }) => accuracy.count },
  ]);
  const full = entries.find(({ budget }) => budget === "full");
  const series = qualitySeries(entries, context, ({ budget, accuracy }) => ({
    y: accuracy.mean,
    low: accuracy.low,
    high: accuracy.high,
    title: `${budget}: ${percent(1)(accuracy.mean)}`,
  }));
  const plot = series.length === 0 ? undefined : linePlot({
    title: `${title}: exact answers against memory`,
    ...MEMORY_AXIS,
    yLabel: "exact answers",
    yFormat: percent(0),
    ...(full && { baseline: { y: full.accuracy.mean, label: "full cache" } }),
    series,
  });
  const galleries = [...Map.groupBy(entries, ({ budget }) => budget)]
    .map(([budget, entries]) =>
      markup`<div class="gallery">${
        entries.map(({ policy, cells }) =>
          heatMap(budget === "full" ? "full" : `${policy}, ${budget}`, cells)
        )
      }</div>
`
    );
  return markup`<h3>${title}</h3>
<p class="note">Share of tasks whose number comes out right, digit by digit, with 95 %
Wilson intervals.</p>
${table}${plot}
<details open><summary>By depth and length, percent</summary>${galleries}</details>`;
}

/** Change of attention outputs: table, plots, and heads won. */
export function perturbationSection(
  { task, entries }: PerturbationTable,
  context: ReportContext,
): Markup {
  const table = variantTable(entries, [
    {
      head: "Relative change",
      cell: ({ relative }) => interval(relative, decimals(4)),
      rank: ({ relative }) => relative.mean,
    },
  ]);
  const budgets = [...Map.groupBy(entries, ({ budget }) => budget)]
    .map(([budget, entries]) =>
      markup`<h4>Budget ${budget}</h4>
${layerPlot(`${task}, ${budget}`, entries, context)}${lowerMatrix(entries)}`
    );
  return markup`<h3>${task}</h3>
<p class="note">Change of a head's output behind the output projection when the cache of
the prompt is compressed, L1, as a share of the output. Queries are those of the
model without compression, at the tokens after the prompt or at its last
ones.</p>
${table}${budgets}`;
}

function layerPlot(
  title: string,
  entries: readonly PerturbationEntry[],
  { indexOf }: ReportContext,
): Markup {
  return linePlot({
    title: `${title}: relative change by layer`,
    xLabel: "layer",
    xFormat: decimals(0),
    xTicks: entries[0]!.layers.map((_, layer) => layer),
    yLabel: "relative change of head outputs",
    series: entries.map(({ policy, layers }) => ({
      label: policy,
      index: indexOf(policy),
      points: layers.map(({ mean, low, high }, layer) => ({
        x: layer,
        y: mean,
        low,
        high,
        title: `layer ${layer}: ${decimals(4)(mean)}`,
      })),
    })),
  });
}

/** Share of heads at which one policy changes less than another one. */
function lowerMatrix(
  entries: readonly PerturbationEntry[],
): Markup | undefined {
  if (entries.length < 2) return undefined;
  const policies = entries.map(({ policy }) => policy);
  const matrix = matrixTable("changes less than", policies, (row, column) => {
    const lower = entries.find(({ policy }) => policy === row)
      ?.lowerThan.find(({ policy }) => policy === column);
    if (lower === undefined) return undefined;
    const { share, layers } = lower;
    const byLayer = layers.map(({ mean }, layer) =>
      `layer ${layer}: ${percent(0)(mean)}`
    ).join(", ");
    return {
      content: markup`<span title="${byLayer}">${
        interval(share, percent(1))
      }</span>`,
      verdict: verdictOf(share, { border: 0.5, better: "above" }),
    };
  });
  return markup`<p class="note">Share of heads whose output changes less under the row
than under the column; colored where the interval excludes one half. Point at a
share to see it by layer.</p>
${matrix}`;
}

/** Speed and memory: table. */
export function throughputSection(
  { task, entries }: ThroughputTable,
): Markup {
  const table = variantTable(entries, [
    {
      head: "Prompt, tokens/s",
      cell: ({ promptTokensPerSecond }) => compact(promptTokensPerSecond),
    },
    {
      head: "Decode, tokens/s",
      cell: ({ tokensPerSecond }) => compact(tokensPerSecond),
    },
    {
      head: "First token, s",
      cell: ({ timeToFirstToken }) => compact(timeToFirstToken),
    },
    { head: "Cache", cell: ({ cacheBytes }) => bytes(cacheBytes) },
    { head: "Working", cell: ({ workingBytes }) => bytes(workingBytes) },
    { head: "Weights", cell: ({ weightBytes }) => bytes(weightBytes) },
  ]);
  return markup`<h3>${task}</h3>
<p class="note">Medians of several runs. Bytes of the cache include the stage, which
holds one chunk of the prompt.</p>
${table}`;
}
