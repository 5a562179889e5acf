/**
 * Plots of quality against memory.
 *
 * @module
 */
import type { Variant } from "./grouping.ts";
import type { PlotPoint, PlotSeries } from "./line_plot.ts";

/** What sections need to know of the whole report. */
export interface ReportContext {
  /** Number of a policy's color and mark. */
  readonly indexOf: (policy: string) => number;
}

/** Lines of quality against memory, one per policy. */
export function qualitySeries<T extends Variant>(
  entries: readonly T[],
  { indexOf }: ReportContext,
  pointOf: (entry: T) => Omit<PlotPoint, "x">,
): PlotSeries[] {
  const limited = entries.filter(({ budget }) => budget !== "full");
  return [...Map.groupBy(limited, ({ policy }) => policy)]
    .map(([label, entries]) => ({
      label,
      index: indexOf(label),
      points: entries.toSorted((a, b) => a.share - b.share)
        .map((entry) => ({ x: entry.share, ...pointOf(entry) })),
    }));
}

/** Axis of a plot of quality against memory. */
export const MEMORY_AXIS = {
  xLabel: "bytes of slots, share of the full cache",
  xScale: "log",
  xFormat: (share: number): string =>
    `${Number((share * 100).toPrecision(3))} %`,
} as const;
