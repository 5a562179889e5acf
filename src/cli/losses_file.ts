/**
 * Files that `deno task calibrate` writes.
 *
 * @module
 */
import {
  checkHeadLosses,
  type HeadLosses,
} from "../policies/allocations/head_losses.ts";

/** Digits that a loss is written with: those of a few texts are not exact. */
const DIGITS = 4;

/** Writes losses, each in so many digits that a file stays readable. */
export async function writeLosses(
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
 * @throws {Error} If there is no such file, or it is not JSON.
 * @throws {TypeError} If a field is missing or out of range, naming it.
 */
export async function readLosses(path: string): Promise<HeadLosses> {
  let text: string;
  try {
    text = await Deno.readTextFile(path);
  } catch (cause) {
    if (!(cause instanceof Deno.errors.NotFound)) throw cause;
    throw new Error(
      `Cannot read losses from ${path}: there is no such file: expected one that deno task calibrate wrote`,
      { cause },
    );
  }
  let losses: unknown;
  try {
    losses = JSON.parse(text);
  } catch (cause) {
    throw new Error(`Cannot read losses from ${path}: expected valid JSON`, {
      cause,
    });
  }
  return checkHeadLosses(losses, path);
}
