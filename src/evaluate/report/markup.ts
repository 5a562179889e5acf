/**
 * HTML and SVG in template literals, with everything put in escaped.
 *
 * @module
 */

/** Text that is markup already. */
export class Markup {
  /** The markup. */
  readonly text: string;

  /** Constructs a new instance from text that needs no escaping. */
  constructor(text: string) {
    this.text = text;
  }
}

/** What a template takes: texts are escaped, `undefined` gives nothing. */
export type MarkupValue =
  | Markup
  | string
  | number
  | undefined
  | readonly MarkupValue[];

/** A template whose values are escaped unless they are {@link Markup}. */
export function markup(
  strings: TemplateStringsArray,
  ...values: readonly MarkupValue[]
): Markup {
  const parts = strings.map((part, i) => part + textOf(values[i]));
  return new Markup(parts.join(""));
}

function textOf(value: MarkupValue): string {
  if (value === undefined) return "";
  if (value instanceof Markup) return value.text;
  if (typeof value === "number") return String(value);
  if (typeof value === "string") return escape(value);
  return value.map(textOf).join("");
}

const ENTITIES: Readonly<Record<string, string>> = {
  "&": "&amp;",
  "<": "&lt;",
  ">": "&gt;",
  '"': "&quot;",
  "'": "&#39;",
};

function escape(text: string): string {
  return text.replace(/[&<>"']/g, (c) => ENTITIES[c]!);
}
