/**
 * Colors, marks and legends, the same for a policy in every plot.
 *
 * @module
 */
import { type Markup, markup } from "./markup.ts";
import { line, shape } from "./svg.ts";

/** Colors that the style sheet has. */
export const COLORS = 8;

/** Class of a line: its color, and dashes where colors repeat. */
export function seriesClass(index: number): string {
  const dashes = Math.floor(index / COLORS) % 3;
  return `series color-${index % COLORS} dashes-${dashes}`;
}

/** Corners of marks around a point; none for the round one. */
const CORNERS: readonly (readonly (readonly [number, number])[])[] = [
  [],
  [[-3.5, -3.5], [3.5, -3.5], [3.5, 3.5], [-3.5, 3.5]],
  [[0, -4.8], [4.4, 3.4], [-4.4, 3.4]],
  [[0, -5], [5, 0], [0, 5], [-5, 0]],
  [[0, 4.8], [4.4, -3.4], [-4.4, -3.4]],
];

/** The mark of a point; its shape tells lines apart without color. */
export function mark(index: number, x: number, y: number): Markup {
  const corners = CORNERS[index % CORNERS.length]!;
  return corners.length === 0
    ? shape("circle", { cx: x, cy: y, r: 4 })
    : shape("polygon", {
      points: corners
        .map(([dx, dy]) => `${(x + dx).toFixed(1)},${(y + dy).toFixed(1)}`)
        .join(" "),
    });
}

/** What the lines of a plot are. */
export function legend(
  series: readonly { readonly label: string; readonly index: number }[],
  baseline?: string,
): Markup {
  const swatch = (label: string, content: Markup) => {
    const box = { viewBox: "0 0 28 12", class: "swatch" };
    return markup`<span>${shape("svg", box, content)}${label}</span>`;
  };
  const entries = series.map(({ label, index }) =>
    swatch(
      label,
      shape("g", { class: seriesClass(index) }, [
        shape("polyline", { points: "1,6 27,6" }),
        mark(index, 14, 6),
      ]),
    )
  );
  if (baseline !== undefined) {
    entries.push(swatch(baseline, line("baseline", [1, 6], [27, 6])));
  }
  return markup`<figcaption class="legend">${entries}</figcaption>`;
}
