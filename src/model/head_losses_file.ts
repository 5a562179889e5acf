/**
 * `head_losses.json`: what a model loses by compressing each of its heads, as
 * `deno task calibrate` measures it.
 *
 * @module
 */
import { ModelFormatError } from "../errors.ts";
import {
  type HeadLosses,
  inspectHeadLosses,
} from "../policies/allocations/head_losses.ts";
import { parseJson, readText } from "./json.ts";

/** Its name in a model's folder. */
export const HEAD_LOSSES_FILE = "head_losses.json";

/** Digits that a loss is written with: those of a few texts are not exact. */
const DIGITS = 4;

/** Writes losses, each in so many digits that a file stays readable. */
export async function writeHeadLosses(
  path: string,
  losses: HeadLosses,
): Promise<void> {
  const { budgets, tokens, loss } = losses;
  const heads = loss.map((layer) =>
    "    " + JSON.stringify(
      layer.map((head) => head.map((x) => Number(x.toPrecision(DIGITS)))),
    )
  );
  const lines = [
    "{",
    `  "budgets": ${JSON.stringify(budgets)},`,
    `  "tokens": ${tokens},`,
    '  "loss": [',
    heads.join(",\n"),
    "  ]",
    "}",
  ];
  await Deno.writeTextFile(path, `${lines.join("\n")}\n`);
}

/**
 * Reads losses.
 *
 * @throws {ModelFormatError} If there is no such file, it is not JSON, or a
 * field is missing or out of range.
 */
export async function readHeadLosses(file: string): Promise<HeadLosses> {
  const text = await readText(file);
  return inspectHeadLosses(parseJson(text, file), (fault) => {
    throw new ModelFormatError(file, fault);
  });
}
