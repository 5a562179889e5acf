import { assertEquals } from "@std/assert";
import {
  describeAnswer,
  describeStats,
  formatBytes,
  formatSeconds,
} from "../../src/cli/statistics.ts";
import type { GeneratorStats } from "../../src/generate/stats.ts";

Deno.test("formatBytes() takes the unit that fits", () => {
  assertEquals(formatBytes(0), "0 B");
  assertEquals(formatBytes(1023), "1,023 B");
  assertEquals(formatBytes(1024), "1 KiB");
  assertEquals(formatBytes(1_381_760), "1.3 MiB");
  assertEquals(formatBytes(2 ** 40), "1 TiB");
  assertEquals(formatBytes(2 ** 60), "1,048,576 TiB");
});

Deno.test("formatSeconds() takes milliseconds below one second", () => {
  assertEquals(formatSeconds(0.0474), "47 ms");
  assertEquals(formatSeconds(13.46), "13.5 s");
});

const stats: GeneratorStats = {
  backend: "cpu",
  device: "one thread",
  policy: "keepkv",
  sequences: 1,
  promptTokens: 1203,
  reusedTokens: 0,
  generatedTokens: 64,
  contextTokens: 1266,
  timeToFirstToken: 13.5,
  promptTokensPerSecond: 89.111,
  tokensPerSecond: 81.25,
  weightBytes: 29_377_536,
  workingBytes: 1_792_180,
  deviceBytes: 64 * 2 ** 20,
  cache: {
    bytes: 1_381_760,
    budgetSlots: 128,
    liveSlots: 127.5,
    merges: 12_059,
    drops: 6725,
    droppedTokens: 7000,
    guardedMerges: 0,
    meanDivergence: 0,
  },
};

Deno.test("describeStats() fits a terminal", () => {
  const text = describeStats(stats);
  assertEquals(
    text,
    `\
prompt   1,203 tokens, first token after 13.5 s, 89.1 tokens/s
text     64 tokens, 81.3 tokens/s
cache    keepkv, 1,266 tokens in 127.5 of 128 slots
         12,059 slots merged and 6,725 dropped, over all heads
memory   cache 1.3 MiB, weights 28 MiB, working buffers 1.7 MiB
backend  cpu: one thread`,
  );
});

Deno.test("describeStats() leaves out what did not happen", () => {
  const [prompt, text] = describeStats({
    ...stats,
    ...{ generatedTokens: 0, tokensPerSecond: 0, timeToFirstToken: 0 },
    ...{ promptTokensPerSecond: 0, reusedTokens: 12 },
  }).split("\n");
  assertEquals(prompt, "prompt   1,203 tokens and 12 reused");
  assertEquals(text, "text     0 tokens");
});

Deno.test("describeAnswer() is one line", () => {
  assertEquals(
    describeAnswer({ ...stats, promptTokens: 24, reusedTokens: 58 }),
    "[127.5 of 128 slots, 1.3 MiB; 24 read, 58 reused, 64 generated at 81.3/s]",
  );
});
