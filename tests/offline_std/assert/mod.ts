/**
 * Stand-in for `@std/assert`: the assertions that this project uses.
 *
 * @module
 */

/** Thrown by every assertion that fails. */
export class AssertionError extends Error {
  /** Constructs a new instance from what is wrong. */
  constructor(message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = "AssertionError";
  }
}

/** A class that `instanceof` can be asked about. */
// deno-lint-ignore no-explicit-any
type Constructor<T = unknown> = abstract new (...args: any[]) => T;

function suffix(msg: string | undefined): string {
  return msg === undefined || msg === "" ? "" : `: ${msg}`;
}

function show(value: unknown): string {
  return Deno.inspect(value, { depth: 10, sorted: true, iterableLimit: 100 });
}

function check(
  holds: boolean,
  message: string,
  msg: string | undefined,
): asserts holds {
  if (!holds) throw new AssertionError(message + suffix(msg));
}

/** Throws. */
export function fail(msg?: string): never {
  throw new AssertionError(`Failed assertion${suffix(msg)}`);
}

/** Asserts that `expr` is truthy. */
export function assert(expr: unknown, msg = ""): asserts expr {
  if (!expr) throw new AssertionError(msg);
}

/** Asserts that `expr` is falsy. */
export function assertFalse(expr: unknown, msg = ""): asserts expr is false {
  if (expr) throw new AssertionError(msg);
}

/** Asserts that `actual` is neither `undefined` nor `null`. */
export function assertExists<T>(
  actual: T,
  msg?: string,
): asserts actual is NonNullable<T> {
  check(
    actual !== undefined && actual !== null,
    `Expected actual: "${actual}" to not be null or undefined`,
    msg,
  );
}

/** Whether two values are deeply equal; `NaN` equals itself, `-0` equals `0`. */
export function equal(a: unknown, b: unknown): boolean {
  const compared = new Map<unknown, unknown>();

  function compare(a: unknown, b: unknown): boolean {
    if (typeof a === "number" && typeof b === "number") {
      return a === b || Number.isNaN(a) && Number.isNaN(b);
    }
    if (Object.is(a, b)) return true;
    if (!isObject(a) || !isObject(b)) return false;
    if ((a.constructor ?? Object) !== (b.constructor ?? Object)) return false;
    if (a instanceof Date && b instanceof Date) {
      return compare(a.getTime(), b.getTime());
    }
    if (a instanceof RegExp || a instanceof URL) {
      return String(a) === String(b);
    }
    if (compared.get(a) === b) return true;
    compared.set(a, b);
    if (isCollection(a) && isCollection(b)) {
      return compareEntries([...a.entries()], [...b.entries()]);
    }
    if (isTypedArray(a) && isTypedArray(b)) {
      // As below, without a list of a million keys.
      return a.length === b.length && a.every((v, i) => compare(v, b[i]));
    }
    const keys = ownKeys(a);
    return keys.length === ownKeys(b).length &&
      keys.every((key) => Object.hasOwn(b, key) && compare(a[key], b[key]));
  }

  function compareEntries(
    a: [unknown, unknown][],
    b: [unknown, unknown][],
  ): boolean {
    return a.length === b.length &&
      a.every((x) => b.some((y) => compare(x[0], y[0]) && compare(x[1], y[1])));
  }

  return compare(a, b);
}

function isObject(value: unknown): value is Record<PropertyKey, unknown> {
  return typeof value === "object" && value !== null;
}

function isCollection(
  value: unknown,
): value is Map<unknown, unknown> | Set<unknown> {
  return value instanceof Map || value instanceof Set;
}

function isTypedArray(value: unknown): value is Float64Array {
  return ArrayBuffer.isView(value) && !(value instanceof DataView);
}

function ownKeys(value: object): PropertyKey[] {
  return Reflect.ownKeys(value).filter((key) =>
    Object.prototype.propertyIsEnumerable.call(value, key)
  );
}

/** Asserts that two values are deeply equal. */
export function assertEquals<T>(actual: T, expected: T, msg?: string): void {
  if (equal(actual, expected)) return;
  throw new AssertionError(
    `Values are not equal${suffix(msg)}\n` +
      `actual:   ${show(actual)}\nexpected: ${show(expected)}`,
  );
}

/** Asserts that two values are not deeply equal. */
export function assertNotEquals<T>(actual: T, expected: T, msg?: string): void {
  check(
    !equal(actual, expected),
    `Expected actual: ${show(actual)} not to be: ${show(expected)}`,
    msg,
  );
}

/** Asserts that two values are the same one. */
export function assertStrictEquals<T>(
  actual: unknown,
  expected: T,
  msg?: string,
): asserts actual is T {
  check(
    Object.is(actual, expected),
    `Values are not strictly equal: ${show(actual)}, ${show(expected)}`,
    msg,
  );
}

/** Asserts that two numbers differ by at most `tolerance`. */
export function assertAlmostEquals(
  actual: number,
  expected: number,
  tolerance?: number,
  msg?: string,
): void {
  if (Object.is(actual, expected)) return;
  tolerance ??= Number.isFinite(expected) ? Math.abs(expected * 1e-7) : 1e-7;
  const delta = Math.abs(expected - actual);
  check(
    delta <= tolerance,
    `Expected actual: "${actual}" to be close to "${expected}": delta "${delta}" is greater than "${tolerance}"`,
    msg,
  );
}

/** Asserts that `actual > expected`. */
export function assertGreater<T>(actual: T, expected: T, msg?: string): void {
  check(actual > expected, `Expect ${show(actual)} > ${show(expected)}`, msg);
}

/** Asserts that `actual >= expected`. */
export function assertGreaterOrEqual<T>(
  actual: T,
  expected: T,
  msg?: string,
): void {
  check(actual >= expected, `Expect ${show(actual)} >= ${show(expected)}`, msg);
}

/** Asserts that `actual < expected`. */
export function assertLess<T>(actual: T, expected: T, msg?: string): void {
  check(actual < expected, `Expect ${show(actual)} < ${show(expected)}`, msg);
}

/** Asserts that `actual <= expected`. */
export function assertLessOrEqual<T>(
  actual: T,
  expected: T,
  msg?: string,
): void {
  check(actual <= expected, `Expect ${show(actual)} <= ${show(expected)}`, msg);
}

/** Asserts that `actual` contains `expected`. */
export function assertStringIncludes(
  actual: string,
  expected: string,
  msg?: string,
): void {
  check(
    actual.includes(expected),
    `Expected actual: "${actual}" to contain: "${expected}"`,
    msg,
  );
}

/** Asserts that `expected` matches `actual`. */
export function assertMatch(
  actual: string,
  expected: RegExp,
  msg?: string,
): void {
  check(
    expected.test(actual),
    `Expected actual: "${actual}" to match: "${expected}"`,
    msg,
  );
}

/** Asserts that `actual` is an instance of `expectedType`. */
export function assertInstanceOf<T>(
  actual: unknown,
  expectedType: Constructor<T>,
  msg?: string,
): asserts actual is T {
  check(
    actual instanceof expectedType,
    `Expected object to be an instance of "${expectedType.name}" but was ${
      show(actual)
    }`,
    msg,
  );
}

/** Asserts that `fn` throws; returns what it threw. */
export function assertThrows(fn: () => unknown, msg?: string): unknown;
/** Asserts that `fn` throws an error of a class, with a part of its message. */
export function assertThrows<E extends Error = Error>(
  fn: () => unknown,
  ErrorClass: Constructor<E>,
  msgIncludes?: string,
  msg?: string,
): E;
export function assertThrows(
  fn: () => unknown,
  ...expected: [unknown?, string?, string?]
): unknown {
  try {
    fn();
  } catch (error) {
    checkError(error, expected);
    return error;
  }
  throw new AssertionError(`Expected function to throw${messageOf(expected)}`);
}

/** Asserts that the promise of `fn` rejects; resolves to the reason. */
export function assertRejects(
  fn: () => PromiseLike<unknown>,
  msg?: string,
): Promise<unknown>;
/** Asserts that the promise of `fn` rejects with an error of a class. */
export function assertRejects<E extends Error = Error>(
  fn: () => PromiseLike<unknown>,
  ErrorClass: Constructor<E>,
  msgIncludes?: string,
  msg?: string,
): Promise<E>;
export async function assertRejects(
  fn: () => PromiseLike<unknown>,
  ...expected: [unknown?, string?, string?]
): Promise<unknown> {
  let promise: PromiseLike<unknown>;
  try {
    promise = fn();
  } catch (error) {
    throw new AssertionError(
      `Function throws when expected to reject${messageOf(expected)}`,
      { cause: error },
    );
  }
  try {
    await promise;
  } catch (error) {
    checkError(error, expected);
    return error;
  }
  throw new AssertionError(`Expected function to reject${messageOf(expected)}`);
}

/** The message among `[msg]` or `[ErrorClass, msgIncludes, msg]`. */
function messageOf([first, , last]: [unknown?, string?, string?]): string {
  return suffix(typeof first === "string" ? first : last);
}

function checkError(
  error: unknown,
  expected: [unknown?, string?, string?],
): void {
  const [errorClass, part = ""] = expected;
  if (typeof errorClass !== "function") return;
  const message = messageOf(expected);
  if (!(error instanceof Error)) {
    throw new AssertionError(`A non-Error object was thrown${message}`);
  }
  if (!(error instanceof errorClass)) {
    throw new AssertionError(
      `Expected error to be instance of "${errorClass.name}", but was "${error.name}": ${error.message}${message}`,
      { cause: error },
    );
  }
  if (!error.message.includes(part)) {
    throw new AssertionError(
      `Expected error message to include "${part}", but got "${error.message}"${message}`,
      { cause: error },
    );
  }
}
