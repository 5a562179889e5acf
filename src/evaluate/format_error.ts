import * as v from "valibot";

/** A file that an evaluation reads is damaged or says something impossible. */
export class EvaluationFormatError extends Error {
  /** File at fault. */
  readonly file: string;

  /** Constructs a new instance from the file at fault and what is wrong. */
  constructor(file: string, message: string, options?: ErrorOptions) {
    super(`Cannot read ${file}: ${message}`, options);
    this.name = "EvaluationFormatError";
    this.file = file;
  }
}

/**
 * Parses JSON.
 *
 * @param place What the message calls it, such as `line 3`.
 * @throws {EvaluationFormatError} On a syntax error.
 */
export function parseJsonAt(
  text: string,
  { file, place }: { file: string; place: string },
): unknown {
  try {
    return JSON.parse(text);
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw new EvaluationFormatError(
      file,
      `${place} is damaged, expected valid JSON: ${reason}`,
      { cause },
    );
  }
}

/**
 * Checks a value against a schema whose messages say what was expected.
 *
 * @typeParam T What the schema lets through.
 * @throws {EvaluationFormatError} Naming the first field at fault.
 */
export function checkFields<T>(
  schema: v.GenericSchema<unknown, T>,
  value: unknown,
  { file, place }: { file: string; place: string },
): T {
  const result = v.safeParse(schema, value, { abortEarly: true });
  if (result.success) return result.output;
  const issue = result.issues[0];
  const field = v.getDotPath(issue) ?? "the value";
  const found = issue.input === undefined
    ? "is missing"
    : `is ${shorten(JSON.stringify(issue.input))}, expected ${issue.message}`;
  throw new EvaluationFormatError(file, `${place}: ${field} ${found}`);
}

function shorten(text: string): string {
  return text.length <= 80 ? text : `${text.slice(0, 77)}...`;
}
