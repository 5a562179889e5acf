/**
 * Texts of the tasks that read windows of documents.
 *
 * @module
 */
import { fullCache } from "../policies/full_cache.ts";
import { compareLogits } from "./agreement.ts";
import type { EvaluationItem, ItemSource } from "./evaluation_item.ts";
import { forcedLogits } from "./forced_logits.ts";
import { meanLoss, scoreWindow } from "./perplexity.ts";
import {
  type AttentionProbe,
  measurePerturbation,
  probeAttention,
} from "./perturbation.ts";
import type { PerturbationTask, TextTask } from "./plan.ts";
import type { Measurement } from "./results.ts";
import { withSetting } from "./settings.ts";
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
  { model, documents: all, seeds }: ItemSource,
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
export function textItems(
  task: TextTask,
  source: ItemSource,
): EvaluationItem[] {
  const { model } = source;
  const { kind, prompt, continuation } = task;
  const totalTokens = prompt + continuation;
  const full = withSetting(fullCache({ budget: totalTokens }), "whole", {
    promptLength: prompt,
    chunk: 1,
  });
  return windowsOf(task, source).map((window) => {
    const item = { document: window.document, start: window.start };
    const score = lazily(() => scoreWindow(model, full, window));
    const logits = lazily(() =>
      Array.fromAsync(forcedLogits(model, full, window))
    );
    return {
      task: `${kind} ${prompt}+${continuation}`,
      identity: { kind, window },
      promptTokens: prompt,
      totalTokens,
      longestPart: prompt,
      measuresFull: kind === "perplexity",
      async measure(policy, signal): Promise<Measurement> {
        if (kind === "agreement") {
          const rows = forcedLogits(model, policy, { ...window, signal });
          const result = await compareLogits(await logits.get(), rows);
          return { kind, item, result };
        }
        const reference = await score.get();
        const own = policy.merge.kind === "never"
          ? reference
          : await scoreWindow(model, policy, { ...window, signal });
        const result = {
          tokens: continuation,
          loss: meanLoss(own.losses),
          fullLoss: meanLoss(reference.losses),
          merges: own.merges,
        };
        return { kind, item, result };
      },
      release() {
        score.release();
        logits.release();
      },
    };
  });
}

/** Windows whose attention is measured. */
export function perturbationItems(
  task: PerturbationTask,
  source: ItemSource,
): EvaluationItem[] {
  const { model } = source;
  const { kind, prompt, probes } = task;
  const shape: TextTask = {
    ...task,
    kind: "perplexity",
    continuation: probes,
    // Neighbouring windows would have almost the same prompt.
    stride: prompt + probes,
  };
  return windowsOf(shape, source).map((window) => {
    const item = { document: window.document, start: window.start };
    const probe = lazily<AttentionProbe>(() => probeAttention(model, window));
    return {
      task: `${kind} ${prompt}+${probes}`,
      identity: { kind, window },
      promptTokens: prompt,
      totalTokens: prompt,
      longestPart: prompt,
      measuresFull: false,
      async measure(policy): Promise<Measurement> {
        const result = await measurePerturbation(
          model,
          policy,
          await probe.get(),
        );
        return { kind, item, result };
      },
      release: probe.release,
    };
  });
}
