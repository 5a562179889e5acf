/**
 * The shapes that plots are made of. Colors come from the style sheet.
 *
 * @module
 */
import { Markup, markup, type MarkupValue } from "./markup.ts";

/** Attributes of a shape; numbers are rounded to a tenth of a pixel. */
export type Attributes = Readonly<Record<string, string | number>>;

/** A shape with attributes, and what is in it. */
export function shape(
  name: string,
  attributes: Attributes,
  content: MarkupValue = "",
): Markup {
  const written = Object.entries(attributes).map(([key, value]) => {
    const short = typeof value === "number"
      ? Math.round(value * 10) / 10
      : value;
    return markup` ${key}="${short}"`;
  });
  const tag = new Markup(name);
  return markup`<${tag}${written}>${content}</${tag}>`;
}

/** A straight line of a class. */
export function line(
  className: string,
  [x1, y1]: readonly [number, number],
  [x2, y2]: readonly [number, number],
): Markup {
  return shape("line", { class: className, x1, y1, x2, y2 });
}

/** What a label says and where. */
export interface LabelOptions {
  /** Which part of it is at `x` (default `middle`). */
  readonly anchor?: "start" | "middle" | "end";
  /** Whether it is read from below. */
  readonly upright?: boolean;
  /** Class beside the one of its size. */
  readonly className: string;
}

/** A text whose middle is at the height `y`. */
export function label(
  text: string | number,
  [x, y]: readonly [number, number],
  { anchor = "middle", upright = false, className }: LabelOptions,
): Markup {
  const place = upright
    ? { transform: `translate(${x.toFixed(1)} ${y.toFixed(1)}) rotate(-90)` }
    : { x, y };
  return shape("text", {
    class: className,
    ...place,
    dy: "0.35em",
    "text-anchor": anchor,
  }, text);
}

/** A drawing of a size, which shrinks where there is less room. */
export function drawing(
  title: string,
  [width, height]: readonly [number, number],
  content: MarkupValue,
): Markup {
  return shape("svg", {
    viewBox: `0 0 ${width} ${height}`,
    style: `max-width:${width}px`,
    role: "img",
    "aria-label": title,
  }, content);
}
