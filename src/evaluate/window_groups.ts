/**
 * Groups of windows of documents.
 *
 * @module
 */
import { fullCache } from "../policies/full_cache.ts";
import { compareLogits } from "./agreement.ts";
import { forcedLogits } from "./forced_logits.ts";
import { meanLoss, scoreWindows } from "./perplexity.ts";
import {
  type AttentionProbe,
  measurePerturbation,
  probeAttention,
} from "./perturbation.ts";
import type { PerturbationTask, TextTask } from "./plan.ts";
import type { Measurement, WindowItem } from "./results.ts";
import { withSetting } from "./settings.ts";
import type { TextGroup, TextSource } from "./text_group.ts";
import { selectWindows, type TextWindow } from "./windows.ts";

/** Remembers what `make` gives until it is released. */
function lazily<T>(make: () => Promise<T>): {
  get: () => Promise<T>;
  release: () => void;
} {
  let value: Promise<T> | undefined;
  return {
    get: () => value ??= make(),
    release: () => value = undefined,
  };
}

/** Windows of all seeds; one that several seeds choose is there once. */
export function windowsOf(
  { prompt, continuation, stride, windowsPerDocument, documents }: TextTask,
  { model, documents: all, seeds }: TextSource,
): TextWindow[] {
  const windows = seeds.flatMap((seed) =>
    selectWindows(all, model.codec, {
      prompt,
      continuation,
      seed,
      ...(stride !== undefined && { stride }),
      ...(windowsPerDocument !== undefined && { windowsPerDocument }),
      ...(documents !== undefined && { documents }),
    })
  );
  const byPlace = new Map(windows.map((w) => [`${w.document} ${w.start}`, w]));
  return [...byPlace.values()];
}

/** Windows that are scored, or compared with the full cache. */
export function scoredGroups(
  task: TextTask,
  source: TextSource,
): TextGroup[] {
  const { model, batch } = source;
  const { kind, prompt, continuation } = task;
  const totalTokens = prompt + continuation;
  const full = withSetting(fullCache({ budget: totalTokens }), "whole", {
    promptLength: prompt,
    chunk: 1,
  });
  return inGroups(windowsOf(task, source), batch).map((windows): TextGroup => {
    const scores = lazily(() => scoreWindows(model, full, { windows }));
    const logits = lazily(async () => {
      const steps = await Array.fromAsync(
        forcedLogits(model, full, { windows }),
      );
      return windows.map((_, text) => steps.map((rows) => rows[text]!));
    });
    return {
      task: `${kind} ${prompt}+${continuation}`,
      identities: windows.map((window) => ({ kind, window })),
      promptTokens: prompt,
      totalTokens,
      longestPart: prompt,
      measuresFull: kind === "perplexity",
      async measure(policy, texts, signal): Promise<Measurement[]> {
        const options = { windows: texts.map((i) => windows[i]!), signal };
        if (kind === "agreement") {
          const reference = await logits.get();
          const results = await compareLogits(
            texts.map((i) => reference[i]!),
            forcedLogits(model, policy, options),
          );
          return texts.map((text, i) => ({
            kind,
            item: placeOf(windows[text]!),
            result: results[i]!,
          }));
        }
        const all = await scores.get();
        const reference = texts.map((text) => all[text]!);
        const own = policy.merge.kind === "never"
          ? reference
          : await scoreWindows(model, policy, options);
        return texts.map((text, i) => ({
          kind,
          item: placeOf(windows[text]!),
          result: {
            tokens: continuation,
            loss: meanLoss(own[i]!.losses),
            fullLoss: meanLoss(reference[i]!.losses),
            merges: own[i]!.merges,
          },
        }));
      },
      release() {
        scores.release();
        logits.release();
      },
    };
  });
}

/** Windows whose attention is measured, one by one. */
export function perturbationGroups(
  task: PerturbationTask,
  source: TextSource,
): TextGroup[] {
  const { model } = source;
  const { kind, prompt, probes, queries } = task;
  const shape: TextTask = {
    ...task,
    kind: "perplexity",
    continuation: probes,
    // Neighbouring windows would have almost the same prompt.
    stride: prompt + probes,
  };
  return windowsOf(shape, source).map((window): TextGroup => {
    const probe = lazily<AttentionProbe>(() =>
      probeAttention(model, window, { queries })
    );
    return {
      task: queries === "window"
        ? `${kind} ${prompt}, its last ${probes}`
        : `${kind} ${prompt}+${probes}`,
      identities: [
        { kind, window, ...(queries === "window" && { queries }) },
      ],
      promptTokens: prompt,
      totalTokens: prompt,
      longestPart: prompt,
      measuresFull: false,
      async measure(policy): Promise<Measurement[]> {
        const result = await measurePerturbation(
          model,
          policy,
          await probe.get(),
        );
        return [{ kind, item: placeOf(window), result }];
      },
      release: probe.release,
    };
  });
}

function placeOf({ document, start }: TextWindow): WindowItem {
  return { document, start };
}

/** Cuts a list into groups of `size`; the last one has what is left over. */
function inGroups<T>(list: readonly T[], size: number): T[][] {
  return Array.from(
    { length: Math.ceil(list.length / size) },
    (_, i) => list.slice(i * size, (i + 1) * size),
  );
}
