/**
 * Stand-in for `@std/cli/parse-args`: flags by name, without dotted names,
 * `stopEarly` and a separate list of what follows `--`.
 *
 * @module
 */

type Names<T extends string> = T | readonly T[];

/** What {@link parseArgs} makes of each flag. */
export interface ParseOptions<
  B extends string,
  S extends string,
  C extends string,
  N extends string,
  D extends Record<string, unknown>,
> {
  /** Flags that are `true` or `false`. */
  readonly boolean?: Names<B>;
  /** Flags that are strings; `_` keeps positional arguments from being numbers. */
  readonly string?: Names<S>;
  /** Flags that may be repeated and become lists. */
  readonly collect?: Names<C>;
  /** Flags that `--no-…` sets to `false`. */
  readonly negatable?: Names<N>;
  /** Values of flags that are not given. */
  readonly default?: D;
  /** Other names of flags. */
  readonly alias?: Readonly<Record<string, Names<string>>>;
  /** Called with what no option names; left out where it returns `false`. */
  readonly unknown?: (arg: string, key?: string, value?: unknown) => unknown;
}

type Flags<
  B extends string,
  S extends string,
  C extends string,
  N extends string,
> =
  & { [K in Exclude<B, C>]: boolean }
  & { [K in Extract<B, C>]: boolean[] }
  & { [K in Exclude<S, C | "_">]?: K extends N ? string | false : string }
  & { [K in Extract<S, C>]: string[] };

type WithDefaults<F, D> =
  & Omit<F, keyof D>
  & {
    [K in keyof D]: K extends keyof F ? D[K] | NonNullable<F[K]> : unknown;
  };

/** Result of {@link parseArgs}. */
export type Args<F> = Record<string, unknown> & F & {
  /** Positional arguments. */
  _: Array<string | number>;
};

type Value = string | number | boolean;

/** Parses command line arguments into an object with one field per flag. */
export function parseArgs<
  B extends string = never,
  S extends string = never,
  C extends string = never,
  N extends string = never,
  D extends Record<string, unknown> = Record<never, never>,
>(
  args: string[],
  options: ParseOptions<B, S, C, N, D> = {},
): Args<WithDefaults<Flags<B, S, C, N>, D>> {
  const aliases = aliasesOf(options.alias ?? {});
  const withAliases = (names: Names<string> | undefined) =>
    new Set(
      list(names).flatMap((name) => [name, ...aliases.get(name) ?? []]),
    );
  const booleans = withAliases(options.boolean);
  const strings = withAliases(options.string);
  const collected = withAliases(options.collect);
  const negatable = withAliases(options.negatable);
  const parsed: Record<string, unknown> & { _: Array<string | number> } = {
    _: [],
  };

  function set(key: string, value: Value, arg: string): void {
    const known = booleans.has(key) || strings.has(key) || aliases.has(key);
    if (!known && options.unknown?.(arg, key, value) === false) return;
    const typed = typeof value === "string" && !strings.has(key)
      ? numberOr(value)
      : value;
    for (const name of [key, ...aliases.get(key) ?? []]) {
      const earlier = parsed[name];
      if (!collected.has(key) || value === false && negatable.has(key)) {
        parsed[name] = typed;
      } else if (Array.isArray(earlier)) earlier.push(typed);
      else parsed[name] = [typed];
    }
  }

  /** Sets a flag without `=`; returns whether it took the next argument. */
  function setFromNext(key: string, next: string | undefined, arg: string) {
    const takes = next !== undefined && next !== "" && !next.startsWith("-") &&
      !booleans.has(key);
    if (takes) set(key, next, arg);
    else if (next === "true" || next === "false") {
      set(key, next === "true", arg);
    } else {
      set(key, strings.has(key) ? "" : true, arg);
      return false;
    }
    return true;
  }

  /** Sets `-a`, `-abc`, `-n5` and `-n=5`. */
  function setShort(letters: string, next: string | undefined, arg: string) {
    for (let i = 0; i < letters.length - 1; i++) {
      const letter = letters[i]!;
      const rest = letters.slice(i + 1);
      if (/[a-z]/i.test(letter) && (rest[0] === "=" || isNumber(rest))) {
        set(letter, rest.replace(/^=/, ""), arg);
        return false;
      }
      set(letter, strings.has(letter) ? "" : true, arg);
    }
    return setFromNext(letters.at(-1)!, next, arg);
  }

  const end = args.includes("--") ? args.indexOf("--") : args.length;
  for (let i = 0; i < end; i++) {
    const arg = args[i]!;
    const next = i + 1 < end ? args[i + 1] : undefined;
    const long = /^--(no-)?(.+?)(?:=(.+))?$/s.exec(arg);
    const short = /^-([^-].*)$/s.exec(arg);
    if (long) {
      const [, no = "", key = "", value] = long;
      if (value !== undefined) {
        set(key, booleans.has(key) ? value !== "false" : value, arg);
      } else if (no !== "" && negatable.has(key)) set(key, false, arg);
      else if (setFromNext(no + key, next, arg)) i++;
    } else if (short) {
      if (setShort(short[1]!, next, arg)) i++;
    } else if (options.unknown?.(arg) !== false) {
      parsed._.push(strings.has("_") ? arg : numberOr(arg));
    }
  }
  parsed._.push(...args.slice(end + 1));

  for (const [key, value] of Object.entries(options.default ?? {})) {
    for (const name of [key, ...aliases.get(key) ?? []]) parsed[name] ??= value;
  }
  for (const key of booleans) parsed[key] ??= collected.has(key) ? [] : false;
  for (const key of strings) if (collected.has(key)) parsed[key] ??= [];
  return parsed as Args<WithDefaults<Flags<B, S, C, N>, D>>;
}

function list(names: Names<string> | undefined): readonly string[] {
  return typeof names === "string" ? [names] : names ?? [];
}

/** The other names of each name. */
function aliasesOf(
  alias: Readonly<Record<string, Names<string>>>,
): Map<string, string[]> {
  const aliases = new Map<string, string[]>();
  for (const [key, names] of Object.entries(alias)) {
    const all = [key, ...list(names)];
    for (const name of all) aliases.set(name, all.filter((n) => n !== name));
  }
  return aliases;
}

function isNumber(text: string): boolean {
  return /^(0x[\da-f]+|[-+]?(\d+(\.\d*)?|\.\d+)(e[-+]?\d+)?)$/i.test(text);
}

function numberOr(text: string): string | number {
  return isNumber(text) ? Number(text) : text;
}
