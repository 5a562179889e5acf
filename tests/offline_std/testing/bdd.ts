/**
 * Stand-in for `@std/testing/bdd`: one `Deno.test` per outermost `describe`,
 * one step per `it`.
 *
 * @module
 */

/** What a test or hook runs. */
type Body = () => void | Promise<void>;

/** Options of a group or test. */
interface Options {
  readonly name: string;
  readonly ignore?: boolean;
  readonly sanitizeOps?: boolean;
  readonly sanitizeResources?: boolean;
}

interface Suite {
  readonly options: Options;
  readonly beforeAll: Body[];
  readonly afterAll: Body[];
  readonly members:
    (Suite | { readonly options: Options; readonly fn: Body })[];
}

let current: Suite | undefined;

/** Groups the tests that `fn` registers. */
export function describe(name: string, fn: () => void): void;
export function describe(options: Options & { readonly fn: () => void }): void;
export function describe(
  name: string | (Options & { readonly fn: () => void }),
  body?: () => void,
): void {
  const { fn, ...options } = typeof name === "string"
    ? { name, fn: body! }
    : name;
  const suite: Suite = { options, beforeAll: [], afterAll: [], members: [] };
  const outer = current;
  current = suite;
  try {
    fn();
  } finally {
    current = outer;
  }
  if (outer !== undefined) {
    outer.members.push(suite);
    return;
  }
  Deno.test({ ...options, fn: (context) => run(suite, context) });
}

/** Registers a test of the group around it. */
export function it(name: string, fn: Body): void;
export function it(options: Options & { readonly fn: Body }): void;
export function it(
  name: string | (Options & { readonly fn: Body }),
  body?: Body,
): void {
  const { fn, ...options } = typeof name === "string"
    ? { name, fn: body! }
    : name;
  inGroup("it").members.push({ options, fn });
}

/** Runs `fn` once before the tests of the group. */
export function beforeAll(fn: Body): void {
  inGroup("beforeAll").beforeAll.push(fn);
}

/** Runs `fn` once after the tests of the group, also when one failed. */
export function afterAll(fn: Body): void {
  inGroup("afterAll").afterAll.push(fn);
}

function inGroup(what: string): Suite {
  if (current === undefined) {
    throw new Error(`Cannot call ${what} outside of describe`);
  }
  return current;
}

async function run(suite: Suite, context: Deno.TestContext): Promise<void> {
  try {
    for (const hook of suite.beforeAll) await hook();
    for (const member of suite.members) {
      await context.step({
        ...member.options,
        fn: "fn" in member ? member.fn : (inner) => run(member, inner),
      });
    }
  } finally {
    for (const hook of suite.afterAll) await hook();
  }
}
