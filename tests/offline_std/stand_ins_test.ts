// What the stand-ins promise. Where JSR can be reached, the same assertions
// run against the real packages.
import {
  assert,
  assertAlmostEquals,
  assertEquals,
  assertExists,
  assertFalse,
  assertGreater,
  assertGreaterOrEqual,
  assertInstanceOf,
  AssertionError,
  assertLess,
  assertLessOrEqual,
  assertMatch,
  assertNotEquals,
  assertRejects,
  assertStrictEquals,
  assertStringIncludes,
  assertThrows,
  equal,
  fail,
} from "@std/assert";
import { parseArgs } from "@std/cli/parse-args";
import { ProgressBar } from "@std/cli/unstable-progress-bar";
import {
  basename,
  dirname,
  extname,
  fromFileUrl,
  isAbsolute,
  join,
  normalize,
  relative,
  resolve,
  toFileUrl,
} from "@std/path";

// The test must not rely on the assertions that it is about.
function holds(condition: boolean, what: string): void {
  if (!condition) throw new Error(`Expected ${what}`);
}

function failure(fn: () => unknown): Error {
  try {
    fn();
  } catch (error) {
    if (error instanceof AssertionError) return error;
    throw error;
  }
  throw new Error(`Expected an AssertionError from ${fn}`);
}

Deno.test("equal() compares deeply", () => {
  const same: [unknown, unknown][] = [
    [NaN, NaN],
    [0, -0],
    [{ a: 1, b: [2, { c: "3" }] }, { b: [2, { c: "3" }], a: 1 }],
    [new Float32Array([1, NaN]), new Float32Array([1, NaN])],
    [new Map([["a", { b: 1 }]]), new Map([["a", { b: 1 }]])],
    [new Set([1, 2]), new Set([2, 1])],
    [new Date(5), new Date(5)],
    [/a/g, /a/g],
    [new URL("file:///a"), new URL("file:///a")],
  ];
  const different: [unknown, unknown][] = [
    [1, "1"],
    [null, undefined],
    [{ a: 1 }, { a: 2 }],
    [{ a: undefined }, {}],
    [{ a: undefined }, { b: undefined }],
    [[1, 2], [1, 2, 3]],
    [[1], { 0: 1 }],
    [new Float32Array([1]), new Float64Array([1])],
    [new Float32Array([1]), new Float32Array([2])],
    [new Map([["a", 1]]), new Map([["a", 2]])],
    [new Set([1]), new Set([2])],
    [new Date(5), new Date(6)],
    [/a/g, /a/],
    [new TypeError("a"), new RangeError("a")],
  ];
  for (const [a, b] of same) {
    holds(equal(a, b), `${Deno.inspect(a)} to equal ${Deno.inspect(b)}`);
    assertEquals(a, b);
    failure(() => assertNotEquals(a, b));
  }
  for (const [a, b] of different) {
    holds(!equal(a, b), `${Deno.inspect(a)} to differ from ${Deno.inspect(b)}`);
    assertNotEquals(a, b);
    failure(() => assertEquals(a, b));
  }
  const message = failure(() => assertEquals(1, 2, "the reason")).message;
  holds(message.includes("the reason"), "the message to be passed on");
});

Deno.test("equal() ends on a cycle", () => {
  const [a, b]: { self?: unknown }[] = [{}, {}];
  a!.self = a;
  b!.self = b;
  holds(equal(a, b), "two cycles to be equal");
});

Deno.test("simple assertions pass and fail", () => {
  assert(1);
  assertFalse(0);
  assertExists(0);
  assertStrictEquals(NaN, NaN);
  assertGreater(2, 1);
  assertGreaterOrEqual(1, 1);
  assertLess(1, 2);
  assertLessOrEqual(1, 1);
  assertStringIncludes("abc", "b");
  assertMatch("abc", /^a/);
  assertInstanceOf(new TypeError(), Error);
  failure(() => assert(0));
  failure(() => assertFalse(1));
  failure(() => assertExists(null));
  failure(() => assertExists(undefined));
  failure(() => assertStrictEquals({}, {}));
  failure(() => assertGreater(1, 1));
  failure(() => assertGreater(NaN, 1));
  failure(() => assertGreaterOrEqual(0, 1));
  failure(() => assertLess(1, 1));
  failure(() => assertLess(NaN, 1));
  failure(() => assertLessOrEqual(2, 1));
  failure(() => assertStringIncludes("abc", "d"));
  failure(() => assertMatch("abc", /^b/));
  failure(() => assertInstanceOf(new Error(), TypeError));
  failure(() => fail());
});

Deno.test("assertAlmostEquals() takes a tolerance", () => {
  assertAlmostEquals(1, 1 + 1e-8);
  assertAlmostEquals(1, 1.5, 0.5);
  assertAlmostEquals(NaN, NaN);
  assertAlmostEquals(Infinity, Infinity);
  failure(() => assertAlmostEquals(1, 1 + 1e-6));
  failure(() => assertAlmostEquals(1, 1.51, 0.5));
  failure(() => assertAlmostEquals(NaN, 1, 10));
  failure(() => assertAlmostEquals(0, -1e-12));
});

Deno.test("assertThrows() and assertRejects() check the error", async () => {
  const thrower = () => {
    throw new RangeError("too far");
  };
  const error = assertThrows(thrower, RangeError, "far");
  holds(error.message === "too far", "the error to be returned");
  assertThrows(thrower);
  assertThrows(thrower, Error);
  failure(() => assertThrows(() => {}));
  failure(() => assertThrows(thrower, TypeError));
  failure(() => assertThrows(thrower, RangeError, "near"));
  failure(() =>
    assertThrows(() => {
      // deno-lint-ignore no-throw-literal
      throw "text";
    }, Error)
  );

  const rejecter = () => Promise.reject(new RangeError("too far"));
  const reason = await assertRejects(rejecter, RangeError, "far");
  holds(reason.message === "too far", "the reason to be returned");
  await assertRejects(rejecter);
  for (
    const wrong of [
      () => assertRejects(() => Promise.resolve()),
      () => assertRejects(rejecter, TypeError),
      () => assertRejects(rejecter, RangeError, "near"),
      () => assertRejects(thrower, RangeError),
    ]
  ) {
    const caught = await wrong().then(() => undefined, (error) => error);
    holds(caught instanceof AssertionError, `${wrong} to reject`);
  }
});

Deno.test("parseArgs() reads the kinds of flags", () => {
  const args = parseArgs(
    [
      ...["--model", "a b", "--seed=-5", "--top-k", "3", "--json", "first"],
      ...["--stop", "x", "--stop=y=z", "--no-color", "-n", "7", "-vh", "-t0.5"],
      ...["2", "--", "--model", "4"],
    ],
    {
      string: ["model", "seed", "stop", "prompt"],
      boolean: ["json", "color", "quiet", "verbose", "help"],
      collect: ["stop"],
      negatable: ["color"],
      default: { color: true, backend: "auto", "max-tokens": 10 },
      alias: { "max-tokens": "n", verbose: "v", help: ["h", "?"] },
    },
  );
  const model: string | undefined = args.model;
  const stop: string[] = args.stop;
  const json: boolean = args.json;
  assertEquals({ model, stop, json }, {
    model: "a b",
    stop: ["x", "y=z"],
    json: true,
  });
  assertEquals(args.seed, "-5");
  assertEquals(args.prompt, undefined);
  assertEquals(args["top-k"], 3);
  assertEquals(args.color, false);
  assertEquals(args.quiet, false);
  assertEquals(args.verbose, true);
  assertEquals(args.help, true);
  assertEquals(args.backend, "auto");
  assertEquals(args["max-tokens"], 7);
  assertEquals(args.n, 7);
  assertEquals(args.t, 0.5);
  assertEquals(args._, ["first", 2, "--model", "4"]);
});

Deno.test("parseArgs() follows the rules for values", () => {
  const options = { string: ["s", "name", "_"], boolean: ["b"] } as const;
  assertEquals(parseArgs(["--name", "--b"], options).name, "");
  assertEquals(parseArgs(["--name", "-b"], options).name, "");
  assertEquals(parseArgs(["--name", "5"], options).name, "5");
  assertEquals(parseArgs(["--name=a", "--name=b"], options).name, "b");
  assertEquals(parseArgs(["--b", "false"], options).b, false);
  assertEquals(parseArgs(["--b=false"], options).b, false);
  assertEquals(parseArgs(["--b", "x"], options)._, ["x"]);
  assertEquals(parseArgs(["12"], options)._, ["12"]);
  assertEquals(parseArgs(["-s", "x"], options).s, "x");
  assertEquals(parseArgs(["-s=x"], options).s, "x");
  assertEquals(parseArgs(["--no-b"], options)["no-b"], true);
  assertEquals(parseArgs(["--other", "x"], options).other, "x");
  assertEquals(parseArgs([], { string: "s", collect: "s" }).s, []);
});

Deno.test("parseArgs() reports what it does not know", () => {
  const unknown: unknown[][] = [];
  const args = parseArgs(["--modle=x", "--json", "-z", "file", "-h"], {
    string: ["model"],
    boolean: ["json"],
    alias: { help: "h" },
    unknown: (...found) => {
      unknown.push(found);
      return false;
    },
  });
  assertEquals(unknown, [
    ["--modle=x", "modle", "x"],
    ["-z", "z", "file"],
  ]);
  assertEquals(args._, []);
  assertEquals(args.json, true);
  assertFalse("modle" in args);
});

Deno.test("ProgressBar writes its state and lets go of the stream", async () => {
  const { readable, writable } = new TransformStream<Uint8Array, Uint8Array>();
  const text = new Response(readable).text();
  const bar = new ProgressBar({
    writable,
    max: 4,
    value: 1,
    barLength: 8,
    fmt: (x) => `${x.styledTime} [${x.progressBar}] ${x.value}/${x.max}`,
    keepOpen: false,
  });
  bar.value = 4;
  await bar.stop();
  const lines = (await text).split("\r\x1b[K");
  assertEquals(lines, ["", "00:00 [##------] 1/4", "00:00 [########] 4/4\n"]);
});

Deno.test("ProgressBar keeps the stream open and survives a broken one", async () => {
  let written = "";
  const writable = new WritableStream<Uint8Array>({
    write(chunk) {
      written += new TextDecoder().decode(chunk);
    },
  });
  await new ProgressBar({ writable, max: 2048, clear: true }).stop();
  assertMatch(written, /\/2(\.0+)? KiB/);
  assert(written.endsWith("\r\x1b[K"));
  await writable.getWriter().close();

  const broken = new WritableStream<Uint8Array>({
    write() {
      throw new Error("gone");
    },
  });
  await new ProgressBar({ writable: broken, max: 1 }).stop();
});

Deno.test({
  name: "paths are split, joined and turned into URLs",
  ignore: Deno.build.os === "windows",
  fn() {
    assertEquals(join("a", "..", "b", "c"), "b/c");
    assertEquals(normalize("a//b/./c/.."), "a/b");
    assertEquals(resolve("/a", "b", "../c"), "/a/c");
    assertEquals(relative("/a/b", "/a/c"), "../c");
    assertEquals(basename("/a/b.c"), "b.c");
    assertEquals(dirname("/a/b.c"), "/a");
    assertEquals(extname("/a/b.c"), ".c");
    assertEquals([isAbsolute("/a"), isAbsolute("a")], [true, false]);
    assertEquals(fromFileUrl("file:///a%20b"), "/a b");
    assertEquals(toFileUrl("/a b").href, "file:///a%20b");
  },
});
