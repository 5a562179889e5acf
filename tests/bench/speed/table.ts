/** Results as lines of text. */
import type { Result } from "./results.ts";

/** A column: its heading, its width and what it shows. */
interface Column {
  readonly heading: string;
  readonly width: number;
  /** Whether it is text, which begins at the left. */
  readonly left?: boolean;
  readonly show: (result: Result) => string;
}

const columns: readonly Column[] = [
  { heading: "what", width: 8, left: true, show: ({ section }) => section },
  { heading: "shape", width: 13, left: true, show: ({ shape }) => shape },
  { heading: "cache", width: 24, left: true, show: ({ cache }) => cache },
  { heading: "batch", width: 5, show: ({ batch }) => String(batch) },
  { heading: "ms", width: 9, show: ({ ms }) => number(ms) },
  {
    heading: "tokens/s",
    width: 9,
    show: ({ tokensPerSecond }) => number(tokensPerSecond),
  },
  { heading: "GB", width: 8, show: ({ bytes }) => number(bytes, 1e9) },
  {
    heading: "TFLOP",
    width: 8,
    show: ({ operations }) => number(operations, 1e12),
  },
  { heading: "bound ms", width: 9, show: ({ boundMs }) => number(boundMs) },
  { heading: "of bound", width: 8, show: ({ ofBound }) => percent(ofBound) },
  { heading: "of stream", width: 9, show: ({ ofStream }) => percent(ofStream) },
  { heading: "of matrix", width: 9, show: ({ ofMatrix }) => percent(ofMatrix) },
  { heading: "host µs", width: 8, show: ({ hostUs }) => number(hostUs) },
];

/** The headings of {@link tableRow}. */
export const tableHead: string = columns
  .map((column) => pad(column.heading, column)).join("  ");

/** One line: milliseconds, bytes and operations are of one unit of work. */
export function tableRow(result: Result): string {
  return columns.map((column) => pad(column.show(result), column)).join("  ");
}

function pad(text: string, { width, left = false }: Column): string {
  return left ? text.padEnd(width) : text.padStart(width);
}

/** Three significant digits, or all before the point; nothing if unknown. */
export function number(value: number | undefined, unit = 1): string {
  if (value === undefined) return "";
  const scaled = value / unit;
  return Math.abs(scaled) >= 100 ? scaled.toFixed(0) : scaled.toPrecision(3);
}

/** A share in percent; nothing if unknown. */
export function percent(share: number | undefined): string {
  return share === undefined ? "" : `${(share * 100).toFixed(1)} %`;
}
