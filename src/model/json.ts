/**
 * Reading JSON that may be wrong: text files, syntax, duplicate keys and
 * schemas, each failure a {@link ModelFormatError} that names file and field.
 *
 * @module
 */
import * as v from "valibot";
import { ModelFormatError } from "../errors.ts";

/** Largest JSON file that is read: no tokenizer or index comes near it. */
const MAX_TEXT_BYTES = 2 ** 28;

/**
 * Reads a whole text file.
 *
 * @throws {ModelFormatError} If it is missing, not a file or far too large.
 */
export async function readText(file: string): Promise<string> {
  const { size } = await statFile(file);
  if (size > MAX_TEXT_BYTES) {
    throw new ModelFormatError(
      file,
      `the file has ${size} bytes, expected at most ${MAX_TEXT_BYTES}`,
    );
  }
  return await Deno.readTextFile(file);
}

/** Whether the error says that there is nothing at a path. */
export function isMissing(error: unknown): boolean {
  return error instanceof Deno.errors.NotFound ||
    // A parent of it is a file.
    error instanceof Deno.errors.NotADirectory;
}

/** Whether there is anything at the path. */
export async function exists(path: string): Promise<boolean> {
  try {
    await Deno.stat(path);
    return true;
  } catch (error) {
    if (isMissing(error)) return false;
    throw error;
  }
}

/**
 * What the file system says of a regular file. Asking first matters: opening a
 * pipe would wait for a writer forever.
 *
 * @throws {ModelFormatError} If it is missing or not a file.
 */
export async function statFile(file: string): Promise<Deno.FileInfo> {
  let info: Deno.FileInfo;
  try {
    info = await Deno.stat(file);
  } catch (cause) {
    if (!isMissing(cause)) throw cause;
    throw new ModelFormatError(file, "the file is missing", { cause });
  }
  if (!info.isFile) {
    throw new ModelFormatError(file, "it is not a file, expected a file");
  }
  return info;
}

/**
 * Parses JSON in which every key of an object is unique. `JSON.parse` alone
 * would keep the last of several equal keys and hide the others.
 *
 * @throws {ModelFormatError} On a syntax error or a duplicate key.
 */
export function parseJson(text: string, file: string): unknown {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw new ModelFormatError(
      file,
      `the JSON is damaged, expected valid JSON: ${reason}`,
      { cause },
    );
  }
  const key = duplicateKey(text);
  if (key !== undefined) {
    throw new ModelFormatError(
      file,
      `key ${show(key)} occurs twice in one object, expected unique keys`,
    );
  }
  return value;
}

/** The first key that an object of the (valid) JSON text has twice. */
function duplicateKey(text: string): string | undefined {
  // One entry per open bracket: the keys so far, or nothing for an array.
  const open: (Set<string> | undefined)[] = [];
  let keyExpected = false;
  for (let i = 0; i < text.length; i++) {
    switch (text[i]) {
      case "{":
        open.push(new Set());
        keyExpected = true;
        break;
      case "[":
        open.push(undefined);
        keyExpected = false;
        break;
      case "}":
      case "]":
        open.pop();
        break;
      case ",":
        keyExpected = open.at(-1) !== undefined;
        break;
      case '"': {
        const end = closingQuote(text, i);
        if (keyExpected) {
          const raw = text.slice(i, end + 1);
          // Two spellings of one key are equal only after unescaping.
          const key = raw.includes("\\") ? JSON.parse(raw) : raw.slice(1, -1);
          const keys = open.at(-1);
          if (keys?.has(key)) return key;
          keys?.add(key);
          keyExpected = false;
        }
        i = end;
      }
    }
  }
  return undefined;
}

/** Index of the quote that ends the string which starts at `start`. */
function closingQuote(text: string, start: number): number {
  let end = start;
  let escapes: number;
  do {
    end = text.indexOf('"', end + 1);
    escapes = 0;
    while (text[end - 1 - escapes] === "\\") escapes++;
  } while (escapes % 2 === 1);
  return end;
}

/**
 * Checks `value` against a schema whose messages say what was expected.
 *
 * @typeParam T What the schema lets through.
 * @throws {ModelFormatError} Naming the first field at fault.
 */
export function checkSchema<T>(
  schema: v.GenericSchema<unknown, T>,
  value: unknown,
  file: string,
): T {
  const result = v.safeParse(schema, value, { abortEarly: true });
  if (result.success) return result.output;
  const issue = result.issues[0];
  const field = v.getDotPath(issue) ?? "the JSON";
  const found = issue.input === undefined
    ? "is missing"
    : `is ${show(issue.input)}, expected ${issue.message}`;
  throw new ModelFormatError(file, `${field} ${found}`);
}

/** A schema for an integer in a range. */
export function integer(
  min: number,
  max: number,
): v.GenericSchema<unknown, number> {
  const message = `an integer from ${min} to ${max}`;
  return v.pipe(
    v.number(message),
    v.integer(message),
    v.minValue(min, message),
    v.maxValue(max, message),
  );
}

/** A schema for a finite number that is more than `min`. */
export function numberAbove(min: number): v.GenericSchema<unknown, number> {
  const message = `a number above ${min}`;
  return v.pipe(
    v.number(message),
    v.finite(message),
    v.gtValue(min, message),
  );
}

/** A value as it is shown in an error message. */
export function show(value: unknown): string {
  if (Array.isArray(value)) return "an array";
  if (typeof value === "object" && value !== null) return "an object";
  const text = typeof value === "string"
    ? JSON.stringify(value)
    : String(value);
  return text.length <= 80 ? text : `${text.slice(0, 77)}...`;
}
