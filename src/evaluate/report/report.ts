/**
 * A report as one page that needs nothing from elsewhere.
 *
 * @module
 */
import type { Setting } from "../settings.ts";
import { Markup, markup } from "./markup.ts";
import {
  perturbationSection,
  retrievalSection,
  throughputSection,
} from "./other_sections.ts";
import { STYLE } from "./style.ts";
import type { EvaluationSummary } from "./summary.ts";
import type { ReportContext } from "./quality.ts";
import {
  agreementSection,
  mergeSection,
  perplexitySection,
} from "./text_sections.ts";

/** Facts about a run that results do not tell. */
export interface ReportOptions {
  /** Lines such as `["Documents", "heldout.jsonl, report half"]`. */
  readonly facts?: readonly (readonly [string, string])[];
}

const SETTINGS: Readonly<Record<Setting, string>> = {
  whole:
    "The prompt is read in one piece and compressed once at its end, as in the papers. While it is read, memory grows with the prompt.",
  streaming:
    "The prompt is read in chunks and compressed after each one, in constant memory.",
};

/** Renders a summary as HTML, with styles and plots inside. */
export function renderReport(
  summary: EvaluationSummary,
  { facts = [] }: ReportOptions = {},
): string {
  const limited = summary.policies.filter((policy) => policy !== "full");
  const context: ReportContext = {
    indexOf: (policy) => Math.max(0, limited.indexOf(policy)),
  };
  const settings = (["whole", "streaming"] as const).flatMap((setting) => {
    const parts = sectionsOf(summary, setting, context);
    return parts.length === 0 ? [] : [{ setting, parts }];
  });
  const allFacts = [
    ["Model", summary.model],
    ["Backend", summary.backends.join(", ")],
    ["Policies", summary.policies.join(", ")],
    ["Measurements", String(summary.results)],
    ...facts,
  ] as const;
  const links = settings.flatMap(({ setting, parts }) =>
    parts.map(({ id, name }) =>
      markup`<li><a href="#${setting}-${id}">${name}, ${setting}</a></li>`
    )
  );
  const body = settings.map(({ setting, parts }) => {
    const sections = parts.map(({ id, sections }) =>
      markup`<section id="${setting}-${id}">${sections}</section>
`
    );
    return markup`<h2 id="${setting}">Setting: ${setting}</h2>
<p>${SETTINGS[setting]}</p>
${sections}`;
  });
  const page = markup`<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>SteadyKV evaluation: ${summary.model}</title>
<style>${new Markup(STYLE)}</style>
</head>
<body>
<h1>SteadyKV evaluation</h1>
<dl>${
    allFacts.map(([name, fact]) =>
      markup`<dt>${name}</dt><dd>${fact}</dd>
`
    )
  }</dl>
<nav><ul>${links}</ul></nav>
${body}
</body>
</html>
`;
  return page.text;
}

/** What a report says of one setting. */
function sectionsOf(
  summary: EvaluationSummary,
  setting: Setting,
  context: ReportContext,
): { id: string; name: string; sections: Markup[] }[] {
  const of = <T extends { readonly setting: Setting }>(tables: readonly T[]) =>
    tables.filter((table) => table.setting === setting);
  return [
    {
      id: "perplexity",
      name: "Perplexity",
      sections: of(summary.perplexity)
        .map((table) => perplexitySection(table, context)),
    },
    {
      id: "agreement",
      name: "Agreement",
      sections: of(summary.agreement)
        .map((table) => agreementSection(table, context)),
    },
    {
      id: "retrieval",
      name: "Retrieval",
      sections: of(summary.retrieval)
        .map((table) => retrievalSection(table, context)),
    },
    {
      id: "perturbation",
      name: "Perturbation",
      sections: of(summary.perturbation)
        .map((table) => perturbationSection(table, context)),
    },
    {
      id: "merges",
      name: "Merges",
      sections: of(summary.merges)
        .map((table) => mergeSection(table, context)),
    },
    {
      id: "throughput",
      name: "Throughput",
      sections: of(summary.throughput).map(throughputSection),
    },
  ].filter(({ sections }) => sections.length > 0);
}
