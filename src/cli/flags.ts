/**
 * Command line flags as a table: each entry says how a flag is read, what is
 * allowed and what the help says about it.
 *
 * @module
 */
import { parseArgs } from "@std/cli/parse-args";

/** The command line is wrong; the message says what was expected. */
export class UsageError extends Error {
  /** Constructs a new instance. */
  constructor(message: string) {
    super(message);
    this.name = "UsageError";
  }
}

/** One flag whose value becomes a `T`. */
export interface Flag<T> {
  /** Name of the value in the help; a switch has none. */
  readonly value?: string;
  /** What the flag does, for the help. */
  readonly help: string;
  /**
   * Makes the value of the texts that were given, in order.
   *
   * @throws {UsageError} If a text is not what the flag takes.
   */
  readonly read: (texts: readonly string[], name: string) => T;
}

/** Flags by name, without the dashes. */
export type Flags = Readonly<Record<string, Flag<unknown>>>;

/** What the flags of a table become. */
export type Values<F extends Flags> = {
  readonly [K in keyof F]: F[K] extends Flag<infer T> ? T : never;
};

/** A flag without a value. */
export function toggle(help: string): Flag<boolean> {
  return { help, read: (texts) => texts.length > 0 };
}

/** A flag whose value `parse` understands; the last one given counts. */
export function one<T>(
  value: string,
  { help, expected, parse }: {
    help: string;
    /** What is allowed, for the error message. */
    expected: string;
    /** Returns `undefined` for a text that is not allowed. */
    parse: (text: string) => T | undefined;
  },
): Flag<T | undefined> {
  return {
    ...{ value, help },
    read(texts, name) {
      const text = texts.at(-1);
      if (text === undefined) return undefined;
      const parsed = parse(text);
      if (parsed !== undefined) return parsed;
      throw new UsageError(
        `Cannot use --${name} ${text}: expected ${expected}`,
      );
    },
  };
}

/** A flag whose value is any text. */
export function text(value: string, help: string): Flag<string | undefined> {
  return one(value, { help, expected: "text", parse: (text) => text });
}

/** A flag that may be given several times. */
export function list(value: string, help: string): Flag<readonly string[]> {
  return { value, help, read: (texts) => texts };
}

/** A flag whose value is one of a few words. */
export function choice<T extends string>(
  value: string,
  { help, words }: { help: string; words: readonly T[] },
): Flag<T | undefined> {
  return one(value, {
    help,
    expected: `one of ${words.join(", ")}`,
    parse: (text) => words.find((word) => word === text),
  });
}

/** A flag whose value is a number that `allows` says is in range. */
export function number(
  value: string,
  { help, expected, allows }: {
    help: string;
    expected: string;
    allows: (value: number) => boolean;
  },
): Flag<number | undefined> {
  return one(value, {
    ...{ help, expected },
    parse(text) {
      const number = Number(text);
      // Number("") and Number(" ") are 0.
      return /\d/.test(text) && allows(number) ? number : undefined;
    },
  });
}

/** A flag whose value is a whole number. */
export function whole(
  value: string,
  { help, from, to = Number.MAX_SAFE_INTEGER }: {
    help: string;
    from: number;
    to?: number;
  },
): Flag<number | undefined> {
  const range = to === Number.MAX_SAFE_INTEGER
    ? `of at least ${from}`
    : `from ${from} to ${to}`;
  return number(value, {
    help,
    expected: `a whole number ${range}`,
    allows: (n) => Number.isSafeInteger(n) && n >= from && n <= to,
  });
}

/** Whether the help is asked for, before anything else is checked. */
export function wantsHelp(args: readonly string[]): boolean {
  const end = args.indexOf("--");
  const flags = end < 0 ? args : args.slice(0, end);
  return flags.includes("--help") || flags.includes("-h");
}

/**
 * Reads a command line.
 *
 * @returns The values of all flags, and what is not a flag in `rest`.
 * @throws {UsageError} If a flag is unknown or its value is not allowed.
 */
export function parseFlags<F extends Flags>(
  args: readonly string[],
  flags: F,
): { values: Values<F>; rest: string[] } {
  const names = Object.keys(flags);
  const withValue = names.filter((name) => flags[name]!.value !== undefined);
  const parsed: Record<string, unknown> = parseArgs(
    joinDashes(args, withValue),
    {
      string: ["_", ...withValue],
      collect: withValue,
      boolean: names.filter((name) => !withValue.includes(name)),
      unknown: (arg, key) => {
        if (key === undefined) return true;
        const name = arg.replace(/=.*$/s, "");
        throw new UsageError(
          withValue.includes(name.slice(2))
            ? missingValue(name.slice(2))
            : `Cannot use flag ${name}: expected one that --help lists`,
        );
      },
    },
  );
  const values = names.map((name) => {
    const found = parsed[name];
    const texts = Array.isArray(found) ? found.map(String) : found ? [""] : [];
    if (withValue.includes(name) && texts.includes("")) {
      throw new UsageError(missingValue(name));
    }
    return [name, flags[name]!.read(texts, name)];
  });
  return {
    values: Object.fromEntries(values) as Values<F>,
    rest: (parsed._ as (string | number)[]).map(String),
  };
}

/**
 * Reads a command line of flags only.
 *
 * @returns The values of all flags.
 * @throws {UsageError} If {@linkcode parseFlags} does, or something is not a
 * flag.
 */
export function parseFlagsOnly<F extends Flags>(
  args: readonly string[],
  flags: F,
): Values<F> {
  const { values, rest } = parseFlags(args, flags);
  if (rest.length === 0) return values;
  throw new UsageError(`Cannot use argument ${rest[0]}: expected flags only`);
}

function missingValue(name: string): string {
  return `Cannot use --${name} without a value: expected --${name}=…`;
}

/**
 * Makes `--flag -5` and `--flag -` one argument: `parseArgs` takes no value
 * that begins with a dash, unless there is an equals sign before it.
 */
function joinDashes(
  args: readonly string[],
  withValue: readonly string[],
): string[] {
  const joined: string[] = [];
  for (let i = 0; i < args.length; i++) {
    const arg = args[i]!;
    if (arg === "--") return [...joined, ...args.slice(i)];
    const next = args[i + 1];
    const isFlag = arg.startsWith("--") && withValue.includes(arg.slice(2));
    if (isFlag && next !== undefined && /^-(?!-)/.test(next)) {
      joined.push(`${arg}=${next}`);
      i++;
    } else joined.push(arg);
  }
  return joined;
}
