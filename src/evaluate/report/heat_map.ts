/**
 * Heat maps of shares.
 *
 * @module
 */
import { percent } from "./format.ts";
import { type Markup, markup } from "./markup.ts";
import type { RetrievalCell } from "./summarize_retrieval.ts";
import { drawing, label, shape } from "./svg.ts";

const [CELL_WIDTH, CELL_HEIGHT] = [52, 26];
const [LEFT, TOP] = [62, 6];
const TICK = { className: "tick" };
const AXIS = { className: "axis" };

/** Depth by length: the share of facts found, in color and in words. */
export function heatMap(
  title: string,
  cells: readonly RetrievalCell[],
): Markup {
  const order = (values: number[]) =>
    [...new Set(values)].sort((a, b) => a - b);
  const lengths = order(cells.map(({ length }) => length));
  const depths = order(cells.map(({ depth }) => depth));
  const right = LEFT + lengths.length * CELL_WIDTH;
  const bottom = TOP + depths.length * CELL_HEIGHT;
  const middle = (row: number, column: number): [number, number] => [
    LEFT + (column + 0.5) * CELL_WIDTH,
    TOP + (row + 0.5) * CELL_HEIGHT,
  ];
  const squares = cells.map((cell) =>
    drawCell(
      cell,
      middle(depths.indexOf(cell.depth), lengths.indexOf(cell.length)),
    )
  );
  const depthLabels = depths.map((depth, row) =>
    label(percent(0)(depth), [LEFT - 6, middle(row, 0)[1]], {
      ...TICK,
      anchor: "end",
    })
  );
  const lengthLabels = lengths.map((length, column) =>
    label(length, [middle(0, column)[0], bottom + 11], TICK)
  );
  const content = [
    squares,
    depthLabels,
    lengthLabels,
    label("tokens", [(LEFT + right) / 2, bottom + 29], AXIS),
    label("depth", [12, (TOP + bottom) / 2], { ...AXIS, upright: true }),
  ];
  return markup`<figure class="small"><figcaption>${title}</figcaption>${
    drawing(title, [right + 6, bottom + 38], content)
  }</figure>
`;
}

/** A square around its middle. */
function drawCell(
  { length, depth, correct, count }: RetrievalCell,
  [x, y]: readonly [number, number],
): Markup {
  const share = Math.round(correct / count * 100);
  const place = `${length} tokens, depth ${percent(0)(depth)}`;
  return shape("g", {}, [
    shape("title", {}, `${place}: ${correct} of ${count}`),
    shape("rect", {
      class: "heat",
      style: `--share:${share}%`,
      x: x - CELL_WIDTH / 2 + 1,
      y: y - CELL_HEIGHT / 2 + 1,
      width: CELL_WIDTH - 2,
      height: CELL_HEIGHT - 2,
      rx: 3,
    }),
    label(share, [x, y], { className: share > 50 ? "on-high" : "on-low" }),
  ]);
}
