/**
 * The two ways to read a prompt, which results never mix.
 *
 * @module
 */
import type { Policy } from "../policies/parts.ts";

/**
 * How a prompt is read.
 *
 * - `whole`: in one piece, compressed once at its end, as in the papers. While
 *   it is read, memory grows with the prompt.
 * - `streaming`: in chunks, compressed after each one, in constant memory.
 */
export type Setting = "whole" | "streaming";

/**
 * What a compression knows of the question that follows a context.
 *
 * - `seen`: the question is part of the last chunk, compressed together with
 *   the context before it;
 * - `probe`: the context is compressed first, by what the question attends to
 *   (CItruS), then the question is read. Policies that observe no attention
 *   make no use of it;
 * - `unseen`: the context is compressed first, then the question is read.
 */
export type QuestionSetting = "seen" | "probe" | "unseen";

/** All question settings. */
export const questionSettings = ["seen", "probe", "unseen"] as const;

/** Options of {@linkcode withSetting}. */
export interface SettingOptions {
  /** Tokens of the prompt. */
  readonly promptLength: number;
  /** Tokens per chunk of the streaming setting. */
  readonly chunk: number;
}

/** The policy in a setting. Nothing but its schedule differs. */
export function withSetting(
  policy: Policy,
  setting: Setting,
  { promptLength, chunk }: SettingOptions,
): Policy {
  return {
    ...policy,
    schedule: setting === "whole"
      ? { kind: "whole", longest: promptLength }
      : { kind: "streaming", chunk },
  };
}
