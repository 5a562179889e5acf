import {
  assert,
  assertAlmostEquals,
  assertEquals,
  assertStringIncludes,
  assertThrows,
} from "@std/assert";
import { createAxis } from "../../src/evaluate/report/axes.ts";
import {
  bytes,
  compact,
  decimals,
  percent,
  signed,
} from "../../src/evaluate/report/format.ts";
import { Markup, markup } from "../../src/evaluate/report/markup.ts";
import { renderReport } from "../../src/evaluate/report/report.ts";
import { summarize } from "../../src/evaluate/report/summary.ts";
import type { ResultRow } from "../../src/evaluate/results.ts";

const EVIL = `<script>alert("1")</script>&'`;

/** Results with numbers that are easy to find. */
function rows(): ResultRow[] {
  const base = { version: 1, model: "a & b", backend: "cpu", key: "" };
  const policies = ["full", "keepkv", "h2o", EVIL];
  const layer = {
    live: 8,
    merged: 30,
    dropped: 10,
    droppedTokens: 12,
    guarded: 3,
    divergence: 6,
  };
  return (["whole", "streaming"] as const).flatMap((setting, s) =>
    policies.flatMap((policy, p): ResultRow[] => {
      const full = policy === "full";
      if (full && setting === "streaming") return [];
      const common = {
        ...base,
        policy,
        budget: full ? "full" : "25%",
        setting: full ? "either" as const : setting,
        memory: {
          slotBytes: full ? 4096 : 1024,
          stageBytes: 64,
          fullBytes: 4096,
        },
      };
      const documents = ["x/1", "x/2", "y/3"];
      const text = documents.flatMap((document, d): ResultRow[] => {
        const item = { document, start: 0 };
        const loss = Math.log(8) + 0.25 * p + 0.5 * s * Math.sign(p);
        const perplexity: ResultRow = {
          ...common,
          kind: "perplexity",
          task: "perplexity 64+16",
          item,
          result: {
            tokens: 16,
            loss: loss + d,
            fullLoss: Math.log(8) + d,
            merges: {
              layers: [
                full ? { ...layer, merged: 0, dropped: 0 } : layer,
              ],
              votes: full ? [8] : [4, 2, 2],
            },
          },
        };
        if (full) return [perplexity];
        return [perplexity, {
          ...common,
          kind: "agreement",
          task: "agreement 64+16",
          item,
          result: { tokens: 16, sameTop: 0.875, divergence: 0.0625 * p },
        }, {
          ...common,
          kind: "perturbation",
          task: "perturbation 64+8",
          item,
          result: {
            absolute: [[p, 1], [2 * p, 1]],
            relative: [[0.1 * p, 0.1], [0.2 * p, 0.1]],
          },
        }];
      });
      const retrieval = (["seen", "unseen"] as const).flatMap((question) =>
        [1, 2, 3, 4].map((seed): ResultRow => ({
          ...common,
          kind: "retrieval",
          task: "needle",
          question,
          item: { form: "needle", length: 256, depth: 0.5, seed },
          result: {
            correct: full || seed <= 3 - s,
            expected: "1234",
            answer: "1234",
          },
        }))
      );
      return [...text, ...retrieval, {
        ...common,
        kind: "throughput",
        task: "throughput 64+16",
        item: { prompt: 64, generate: 16 },
        result: {
          promptTokensPerSecond: 321,
          tokensPerSecond: 123,
          timeToFirstToken: 0.5,
          cacheBytes: 2048,
          workingBytes: 2 ** 20,
          weightBytes: 2 ** 21,
        },
      }];
    })
  );
}

const summary = summarize(rows());
const page = renderReport(summary, { facts: [["Documents", "held <out>"]] });

/** Parts of a page between two headings of settings. */
function settingPart(setting: "whole" | "streaming"): string {
  const [before, after] = page.split('<h2 id="streaming">');
  return setting === "whole" ? before! : after!;
}

Deno.test("settings are kept apart", () => {
  const perplexity = (setting: string) =>
    summary.perplexity.find((table) => table.setting === setting)!
      .entries.find(({ policy }) => policy === "keepkv")!;
  // Documents count once each: losses above full are 0.25 and 0.75 on all.
  assertEquals(perplexity("whole").excess.count, 3);
  assert(Math.abs(perplexity("whole").excess.mean - 0.25) < 1e-12);
  assert(Math.abs(perplexity("streaming").excess.mean - 0.75) < 1e-12);
  // exp(ln 8 + 1 + 0.25), the mean of documents at 0, 1 and 2 nats more.
  const expected = `${(8 * Math.exp(1.25)).toFixed(3)} <small>`;
  assertStringIncludes(settingPart("whole"), expected);
  assert(!settingPart("streaming").includes(expected));
  assertStringIncludes(
    settingPart("streaming"),
    (8 * Math.exp(1.75)).toFixed(3),
  );
  // The full cache is in both.
  for (const setting of ["whole", "streaming"] as const) {
    assertStringIncludes(settingPart(setting), (8 * Math.E).toFixed(3));
  }
});

Deno.test("the report has the numbers of the summary", () => {
  const whole = settingPart("whole");
  // Loss above full and its interval, which has no spread.
  assertStringIncludes(whole, "+0.2500 <small>[+0.2500, +0.2500]</small>");
  // exp(0.25) − 1.
  assertStringIncludes(whole, "+28.4 %");
  assertStringIncludes(whole, "87.5 %");
  assertStringIncludes(whole, "0.0625");
  // Three of four answers, in the table and in the heat map.
  assertStringIncludes(whole, "75.0 %");
  assertStringIncludes(whole, "256 tokens, depth 50 %: 3 of 4");
  assertStringIncludes(settingPart("streaming"), "depth 50 %: 2 of 4");
  // Under h2o (p = 2) heads 0 change more than under keepkv (p = 1), heads 1
  // change as much: half of the heads are lower.
  assertStringIncludes(whole, "50.0 % <small>[50.0 %, 50.0 %]</small>");
  // Merged, KL per merge 6 / 30, guarded 3 / 30, votes 4 of 8.
  assertStringIncludes(whole, "0.2000");
  assertStringIncludes(whole, "10.0 %");
  assertStringIncludes(whole, "50 %</text>");
  assertStringIncludes(whole, '<td class="">123</td>');
  assertStringIncludes(whole, "2.0 KiB");
});

Deno.test("the report is one page without anything from elsewhere", () => {
  assert(page.startsWith("<!DOCTYPE html>"));
  assert(!/\b(?:https?|ftp):/i.test(page), "a URL");
  assert(!/\b(?:src|href)=(?!"#)/i.test(page), "a reference");
  assert(!/@import|url\(|<link|<script|<img|<iframe/i.test(page));
  const ids = [...page.matchAll(/ id="([^"]+)"/g)].map(([, id]) => id);
  assertEquals(new Set(ids).size, ids.length);
  for (const [, id] of page.matchAll(/href="#([^"]+)"/g)) {
    assert(ids.includes(id), id);
  }
  assertStringIncludes(page, "prefers-color-scheme:dark");
});

Deno.test("names from outside are escaped", () => {
  assertStringIncludes(page, "&lt;script&gt;alert(&quot;1&quot;)");
  assertStringIncludes(page, "<dd>a &amp; b</dd>");
  assertStringIncludes(page, "<dd>held &lt;out&gt;</dd>");
  assertEquals(
    markup`<b>${"<i>"}${undefined}${[1, new Markup("<u>")]}</b>`.text,
    "<b>&lt;i&gt;1<u></b>",
  );
});

Deno.test("every element is closed", () => {
  const open: string[] = [];
  const tags = page.replace(/<!DOCTYPE html>|<style>[^<]*<\/style>/g, "")
    .matchAll(/<(\/?)([a-z0-9]+)[^>]*>/g);
  for (const [tag, end, name] of tags) {
    if (["meta"].includes(name!)) continue;
    if (end === "") open.push(name!);
    else assertEquals(open.pop(), name, tag);
  }
  assertEquals(open, []);
});

Deno.test("every number of a plot is a number", () => {
  assert(!/NaN|Infinity|undefined/.test(page));
  const coordinates = [
    ...page.matchAll(/ (?:x|y|x1|x2|y1|y2|cx|cy)="([^"]*)"/g),
  ];
  assert(coordinates.length > 200);
  for (const [, value] of coordinates) assert(Number.isFinite(Number(value)));
});

Deno.test("results of two models are not averaged", () => {
  const [first, ...rest] = rows();
  assertThrows(
    () => summarize([{ ...first!, model: "other" }, ...rest]),
    RangeError,
    "results of 2 models",
  );
});

Deno.test("linear axes end at round numbers", () => {
  const axis = createAxis([0.013, 0.147]);
  assertEquals(axis.ticks, [0, 0.05, 0.1, 0.15]);
  assertAlmostEquals(axis.place(0.15), 1, 1e-12);
  assertAlmostEquals(axis.place(0), 0, 1e-12);
  assertEquals(axis.decimals, 2);
  const single = createAxis([3, 3]);
  assert(single.ticks.length >= 2);
  assert(single.place(3) >= 0 && single.place(3) <= 1);
});

Deno.test("logarithmic axes have ticks however short they are", () => {
  const wide = createAxis([0.05, 0.5], { kind: "log" });
  assertEquals(wide.ticks, [0.05, 0.1, 0.2, 0.5]);
  const spread = wide.place(0.2) - wide.place(0.1);
  assert(Math.abs(spread - (wide.place(0.1) - wide.place(0.05))) < 1e-12);
  for (const values of [[0.21, 0.41], [0.4, 0.42], [0.3]]) {
    const axis = createAxis(values, { kind: "log" });
    assert(axis.ticks.length >= 3, `${values}: ${axis.ticks}`);
    for (const tick of axis.ticks) {
      assert(axis.place(tick) >= 0 && axis.place(tick) <= 1);
    }
  }
});

Deno.test("numbers are written with signs and units", () => {
  assertEquals(signed(2)(0.5), "+0.50");
  assertEquals(signed(2)(-0.5), "\u22120.50");
  assertEquals(decimals(2)(-0.001), "0.00");
  assertEquals(percent(1)(0.1234), "12.3 %");
  assertEquals(bytes(1000), "1000 B");
  assertEquals(bytes(1536), "1.5 KiB");
  assertEquals(bytes(250 * 2 ** 20), "250 MiB");
  assertEquals([compact(0), compact(1234.5), compact(0.01234)], [
    "0",
    "1235",
    "0.0123",
  ]);
});
