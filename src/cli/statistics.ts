/**
 * Statistics as people read them.
 *
 * @module
 */
import type { GeneratorStats } from "../generate/stats.ts";

/** A number with a comma between thousands and at most one decimal. */
export function formatNumber(value: number): string {
  return value.toLocaleString("en-US", { maximumFractionDigits: 1 });
}

/** Bytes in the unit that leaves one to four digits. */
export function formatBytes(bytes: number): string {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const power = Math.floor(Math.log2(Math.max(bytes, 1)) / 10);
  const unit = Math.min(power, units.length - 1);
  return `${formatNumber(bytes / 1024 ** unit)} ${units[unit]}`;
}

/** A time in milliseconds or seconds. */
export function formatSeconds(seconds: number): string {
  return seconds < 1
    ? `${formatNumber(Math.round(seconds * 1000))} ms`
    : `${formatNumber(seconds)} s`;
}

/** Everything worth knowing after a generation, in a few lines. */
export function describeStats(stats: GeneratorStats): string {
  const { cache } = stats;
  const rate = (value: number) =>
    value > 0 ? `, ${formatNumber(value)} tokens/s` : "";
  const reused = stats.reusedTokens > 0
    ? ` and ${formatNumber(stats.reusedTokens)} reused`
    : "";
  const first = stats.generatedTokens > 0
    ? `, first token after ${formatSeconds(stats.timeToFirstToken)}` +
      rate(stats.promptTokensPerSecond)
    : "";
  const rows = [
    ["prompt", `${formatNumber(stats.promptTokens)} tokens${reused}${first}`],
    [
      "text",
      `${formatNumber(stats.generatedTokens)} tokens` +
      rate(stats.tokensPerSecond),
    ],
    [
      "cache",
      `${stats.policy}, ${formatNumber(stats.contextTokens)} tokens in ` +
      `${describeSlots(stats)}`,
    ],
    [
      "",
      `${formatNumber(cache.merges)} slots merged and ` +
      `${formatNumber(cache.drops)} dropped, over all heads`,
    ],
    [
      "memory",
      `cache ${formatBytes(cache.bytes)}, weights ` +
      `${formatBytes(stats.weightBytes)}, working buffers ` +
      formatBytes(stats.workingBytes),
    ],
    ["backend", `${stats.backend}: ${stats.device}`],
  ];
  return rows.map(([name, text]) => `${name!.padEnd(8)} ${text}`).join("\n");
}

/** What an answer took and what the cache holds, in one line. */
export function describeAnswer(stats: GeneratorStats): string {
  const { tokensPerSecond: rate } = stats;
  return `[${describeSlots(stats)}, ${formatBytes(stats.cache.bytes)}; ` +
    `${stats.promptTokens} read, ${stats.reusedTokens} reused, ` +
    `${stats.generatedTokens} generated` +
    (rate > 0 ? ` at ${formatNumber(rate)}/s]` : "]");
}

function describeSlots({ cache }: GeneratorStats): string {
  return `${formatNumber(cache.liveSlots)} of ` +
    `${formatNumber(cache.budgetSlots)} slots`;
}
