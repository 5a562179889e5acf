import { assertEquals, assertThrows } from "@std/assert";
import {
  choice,
  list,
  number,
  parseFlags,
  text,
  toggle,
  UsageError,
  wantsHelp,
  whole,
} from "../../src/cli/flags.ts";

const flags = {
  prompt: text("TEXT", ""),
  backend: choice("NAME", { help: "", words: ["cpu", "webgpu"] }),
  "top-k": whole("N", { help: "", from: 0, to: 50 }),
  seed: whole("N", { help: "", from: 0 }),
  "top-p": number("P", {
    help: "",
    expected: "a number up to 1",
    allows: (n) => n <= 1,
  }),
  stop: list("TEXT", ""),
  json: toggle(""),
};

const nothing = {
  prompt: undefined,
  backend: undefined,
  "top-k": undefined,
  seed: undefined,
  "top-p": undefined,
  stop: [],
  json: false,
};

Deno.test("parseFlags() reads each kind of flag", () => {
  const cases: [string[], Record<string, unknown>, string[]][] = [
    [[], {}, []],
    [["--prompt", "a b"], { prompt: "a b" }, []],
    [["--prompt=a=b\nc"], { prompt: "a=b\nc" }, []],
    [["--prompt", "12"], { prompt: "12" }, []],
    [["--prompt", "true"], { prompt: "true" }, []],
    [["--prompt", "-"], { prompt: "-" }, []],
    [["--prompt", "- a list"], { prompt: "- a list" }, []],
    [["--prompt=--json"], { prompt: "--json" }, []],
    [["--seed", "1", "--seed", "2"], { seed: 2 }, []],
    [["--backend", "cpu"], { backend: "cpu" }, []],
    [["--top-k", "50"], { "top-k": 50 }, []],
    [["--top-p", "-.5"], { "top-p": -0.5 }, []],
    [["--stop", "a", "--stop", "b"], { stop: ["a", "b"] }, []],
    [["--json", "word"], { json: true }, ["word"]],
    [["12", "-", "--", "--json"], {}, ["12", "-", "--json"]],
  ];
  for (const [args, expected, rest] of cases) {
    const parsed = parseFlags(args, flags);
    assertEquals(parsed.values, { ...nothing, ...expected }, args.join(" "));
    assertEquals(parsed.rest, rest, args.join(" "));
  }
});

Deno.test("parseFlags() says what is wrong", () => {
  const cases: [string[], string][] = [
    [["--buget", "5"], "Cannot use flag --buget: expected one that --help"],
    [["--buget=5"], "Cannot use flag --buget: expected one that --help"],
    [["-x"], "Cannot use flag -x: expected one that --help lists"],
    [["--no-json"], "Cannot use flag --no-json: expected one that --help"],
    [["--prompt"], "Cannot use --prompt without a value: expected --prompt=…"],
    [["--prompt", ""], "Cannot use --prompt without a value"],
    [["--prompt="], "Cannot use --prompt without a value"],
    [["--prompt", "--json"], "Cannot use --prompt without a value"],
    [["--stop", ""], "Cannot use --stop without a value"],
    [["--backend", "gpu"], "--backend gpu: expected one of cpu, webgpu"],
    [["--seed", "1.5"], "--seed 1.5: expected a whole number of at least 0"],
    [["--seed", "-1"], "--seed -1: expected a whole number of at least 0"],
    [["--seed", "9007199254740992"], "expected a whole number of at least 0"],
    [["--top-k", "51"], "--top-k 51: expected a whole number from 0 to 50"],
    [["--top-p", "much"], "--top-p much: expected a number up to 1"],
    [["--top-p", "2"], "--top-p 2: expected a number up to 1"],
  ];
  for (const [args, message] of cases) {
    assertThrows(() => parseFlags(args, flags), UsageError, message);
  }
});

Deno.test("wantsHelp() looks at flags only", () => {
  assertEquals(wantsHelp(["--wrong", "--help"]), true);
  assertEquals(wantsHelp(["-h"]), true);
  assertEquals(wantsHelp(["--", "--help"]), false);
  assertEquals(wantsHelp(["help"]), false);
});
