/**
 * Plots of lines with error bars.
 *
 * @module
 */
import { type Axis, createAxis, type ScaleKind } from "./axes.ts";
import { decimals, type Format } from "./format.ts";
import { type Markup, markup } from "./markup.ts";
import { legend, mark, seriesClass } from "./series.ts";
import { drawing, label, line, shape } from "./svg.ts";

/** A point and its interval. */
export interface PlotPoint {
  /** Place on the horizontal axis. */
  readonly x: number;
  /** Place on the vertical axis. */
  readonly y: number;
  /** Lower end of the error bar. */
  readonly low: number;
  /** Upper end of the error bar. */
  readonly high: number;
  /** What is shown where one points at it. */
  readonly title: string;
}

/** A line. */
export interface PlotSeries {
  /** What the legend calls it. */
  readonly label: string;
  /** Number of its color and mark, the same in all plots of a report. */
  readonly index: number;
  /** Its points, from left to right. */
  readonly points: readonly PlotPoint[];
}

/** What a plot shows. */
export interface LinePlotOptions {
  /** What the plot shows, for those who cannot see it. */
  readonly title: string;
  /** Name and unit of the horizontal axis. */
  readonly xLabel: string;
  /** Name and unit of the vertical axis. */
  readonly yLabel: string;
  /** How places follow from `x` (default linear). */
  readonly xScale?: ScaleKind;
  /** Numbers along the horizontal axis (default: round ones). */
  readonly xTicks?: readonly number[];
  /** How numbers along the horizontal axis are written. */
  readonly xFormat: Format;
  /** How numbers along the vertical axis are written (default: as numbers). */
  readonly yFormat?: Format;
  /** A line across, such as that of the full cache. */
  readonly baseline?: { readonly y: number; readonly label: string };
  /** The lines. */
  readonly series: readonly PlotSeries[];
}

const [WIDTH, HEIGHT] = [860, 400];
const [LEFT, RIGHT, TOP, BOTTOM] = [80, WIDTH - 20, 16, HEIGHT - 54];
const TICK = { className: "tick" };
const AXIS = { className: "axis" };
/** Pixels between error bars of lines with a point at the same place. */
const DODGE = 4;
/** Pixels that all of them may take. */
const DODGE_ALL = 24;

/** A plot with its legend. */
export function linePlot(options: LinePlotOptions): Markup {
  const { title, series, baseline } = options;
  const points = series.flatMap(({ points }) => points);
  const x = createAxis(points.map(({ x }) => x), {
    kind: options.xScale ?? "linear",
    ticks: 9,
  });
  const y = createAxis([
    ...points.flatMap(({ y, low, high }) => [y, low, high]),
    ...(baseline ? [baseline.y] : []),
  ]);
  const frame: Frame = {
    left: (value) => LEFT + x.place(value) * (RIGHT - LEFT),
    top: (value) => BOTTOM - y.place(value) * (BOTTOM - TOP),
  };
  const dodge = Math.min(DODGE, DODGE_ALL / series.length);
  const content = [
    yTicks(y, frame, options.yFormat ?? decimals(y.decimals)),
    xTicks(options.xTicks ?? x.ticks, frame, options.xFormat),
    label(options.xLabel, [(LEFT + RIGHT) / 2, HEIGHT - 12], AXIS),
    label(options.yLabel, [16, (TOP + BOTTOM) / 2], { ...AXIS, upright: true }),
    baseline && across("baseline", frame.top(baseline.y)),
    series.map((line, i) =>
      drawSeries(line, frame, (i - (series.length - 1) / 2) * dodge)
    ),
  ];
  return markup`<figure>${drawing(title, [WIDTH, HEIGHT], content)}${
    legend(series, baseline?.label)
  }</figure>
`;
}

/** Where numbers are on the page. */
interface Frame {
  readonly left: (value: number) => number;
  readonly top: (value: number) => number;
}

function across(className: string, y: number): Markup {
  return line(className, [LEFT, y], [RIGHT, y]);
}

function yTicks(axis: Axis, { top }: Frame, format: Format): Markup[] {
  return axis.ticks.flatMap((tick) => [
    across("grid", top(tick)),
    label(format(tick), [LEFT - 8, top(tick)], { ...TICK, anchor: "end" }),
  ]);
}

function xTicks(
  ticks: readonly number[],
  { left }: Frame,
  format: Format,
): Markup[] {
  return ticks.flatMap((tick) => [
    line("grid", [left(tick), TOP], [left(tick), BOTTOM + 4]),
    label(format(tick), [left(tick), BOTTOM + 14], TICK),
  ]);
}

function drawSeries(
  { points, index, label }: PlotSeries,
  { left, top }: Frame,
  dodge: number,
): Markup {
  const places = points.map((point) => ({
    point,
    x: left(point.x) + dodge,
    y: top(point.y),
  }));
  const path = places.map(({ x, y }) => `${x.toFixed(1)},${y.toFixed(1)}`);
  const marks = places.map(({ point: { low, high, title }, x, y }) =>
    shape("g", {}, [
      shape("title", {}, `${label}: ${title}`),
      line("error", [x, top(low)], [x, top(high)]),
      mark(index, x, y),
    ])
  );
  return shape("g", { class: seriesClass(index) }, [
    shape("polyline", { points: path.join(" ") }),
    marks,
  ]);
}
