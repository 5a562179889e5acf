import { assertEquals, assertThrows } from "@std/assert";
import { StopStrings } from "../../src/generate/stop_strings.ts";

/** Feeds pieces until a stop; returns what was shown. */
function run(stops: string[], pieces: string[]): [string, boolean] {
  const matcher = new StopStrings(stops);
  let shown = "";
  for (const piece of pieces) {
    const { text, stopped } = matcher.push(piece);
    shown += text;
    if (stopped) return [shown, true];
  }
  return [shown + matcher.flush(), false];
}

Deno.test("StopStrings finds a stop within, across and at the edge of pieces", () => {
  assertEquals(run(["END"], ["abc END def"]), ["abc ", true]);
  assertEquals(run(["END"], ["abc E", "N", "D def"]), ["abc ", true]);
  assertEquals(run(["END"], ["END"]), ["", true]);
  assertEquals(run(["a", "bc"], ["xbc"]), ["x", true]);
});

Deno.test("StopStrings shows what only looked like a stop", () => {
  assertEquals(run(["END"], ["EN", "EMY EN"]), ["ENEMY EN", false]);
  assertEquals(run(["aab"], ["aa", "aab"]), ["aa", true]);
  assertEquals(run(["\n\n"], ["a\n", "b\n"]), ["a\nb\n", false]);
  assertEquals(run([], ["any", "thing"]), ["anything", false]);
});

Deno.test("StopStrings takes the first stop in the text", () => {
  assertEquals(run(["late", "x"], ["a x late"]), ["a ", true]);
});

Deno.test("StopStrings agrees with a search in the whole text", () => {
  let state = 1;
  const next = (n: number) => (state = state * 48271 % 2147483647) % n;
  for (let round = 0; round < 500; round++) {
    const pieces = Array.from(
      { length: 12 },
      () => Array.from({ length: next(4) }, () => "ab"[next(2)]).join(""),
    );
    const stop = Array.from({ length: 1 + next(5) }, () => "ab"[next(2)])
      .join("");
    const whole = pieces.join("");
    const at = whole.indexOf(stop);
    assertEquals(
      run([stop], pieces),
      at < 0 ? [whole, false] : [whole.slice(0, at), true],
    );
  }
});

Deno.test("StopStrings refuses an empty stop", () => {
  assertThrows(() => new StopStrings([""]), TypeError, "empty stop string");
});
