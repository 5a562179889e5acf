/**
 * Histograms.
 *
 * @module
 */
import { percent } from "./format.ts";
import { type Markup, markup } from "./markup.ts";
import { seriesClass } from "./series.ts";
import { drawing, label, line, shape } from "./svg.ts";

const [BAR, GAP] = [34, 6];
const [LEFT, TOP, BOTTOM] = [8, 20, 130];
const TICK = { className: "tick" };

/** What a histogram shows. */
export interface HistogramOptions {
  /** What it is of. */
  readonly title: string;
  /** Number of its color. */
  readonly index: number;
  /** Labels of the bins. */
  readonly labels: readonly string[];
  /** Share of each bin. */
  readonly shares: readonly number[];
  /** Name of the axis. */
  readonly xLabel: string;
}

/** A histogram of shares, each written above its bar. */
export function histogram(
  { title, index, labels, shares, xLabel }: HistogramOptions,
): Markup {
  const width = LEFT * 2 + labels.length * (BAR + GAP);
  const bars = labels.flatMap((name, i) => {
    const share = shares[i] ?? 0;
    const x = LEFT + GAP / 2 + i * (BAR + GAP);
    const height = share * (BOTTOM - TOP);
    const y = BOTTOM - height;
    const written = share > 0 && share < 0.005 ? "<1 %" : percent(0)(share);
    return [
      shape("rect", { class: "bar", x, y, width: BAR, height }),
      label(written, [x + BAR / 2, y - 8], TICK),
      label(name, [x + BAR / 2, BOTTOM + 11], TICK),
    ];
  });
  const content = [
    shape("g", { class: seriesClass(index) }, bars),
    line("frame", [LEFT, BOTTOM], [width - LEFT, BOTTOM]),
    label(xLabel, [width / 2, BOTTOM + 29], { className: "axis" }),
  ];
  return markup`<figure class="small"><figcaption>${title}</figcaption>${
    drawing(title, [width, BOTTOM + 38], content)
  }</figure>
`;
}
