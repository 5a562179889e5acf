/**
 * Measures what compressing each head alone costs, for budgets by head.
 *
 * @module
 */
import { resolveBudget } from "../cache/budget.ts";
import type { HeadLosses } from "../policies/allocations/head_losses.ts";
import { fullCache } from "../policies/full_cache.ts";
import type { Allocate, Policy } from "../policies/parts.ts";
import type { PolicyFactory } from "../policies/registry.ts";
import { steady } from "../policies/steady.ts";
import { compareLogits } from "./agreement.ts";
import { forcedLogits } from "./forced_logits.ts";
import type { EvaluationModel } from "./model.ts";
import type { ForcedWindow } from "./perplexity.ts";

/** Options of {@linkcode measureHeadLosses}. */
export interface HeadLossesOptions {
  /** Slots that a head is compressed to, rising, below the texts' length. */
  readonly budgets: readonly number[];
  /** The policy with a budget (default `steady`); it must be able to evict. */
  readonly policy?: PolicyFactory;
  /** Told how many of the runs are done. */
  readonly onProgress?: (done: number, total: number) => void;
  /** Stops with the signal's reason. */
  readonly signal?: AbortSignal | undefined;
}

/**
 * Measures the divergence from the full cache that each head causes when it
 * alone is compressed and all others keep every token.
 *
 * The first tokens of a text, as many as the smallest budget, are read as a
 * prompt, since nothing is compressed yet; all others are forced one by one,
 * and the loss is the mean over them of `KL(full ‖ compressed)`. All texts are
 * read together, each in a sequence of its own.
 *
 * It takes `layers · kvHeads · budgets` runs over all texts, and keeps the
 * logits of the full cache, one row of the vocabulary per token. A few texts
 * suffice: heads differ by orders of magnitude.
 *
 * @param texts Ids of each text, all of one length.
 * @throws {RangeError} If there is no text, the texts differ in length, or a
 * budget does not suit the policy or is not below their length.
 */
export async function measureHeadLosses(
  model: EvaluationModel,
  texts: readonly (readonly number[])[],
  { budgets, policy = steady, onProgress, signal }: HeadLossesOptions,
): Promise<HeadLosses> {
  const tokens = texts[0]?.length ?? 0;
  if (tokens === 0 || texts.some(({ length }) => length !== tokens)) {
    throw new RangeError(
      `Cannot measure losses on texts of ${
        texts.map(({ length }) => length).join(", ") || "no"
      } tokens: expected at least one, all of one length`,
    );
  }
  const isRising = budgets.every((slots, i) =>
    Number.isSafeInteger(slots) && slots > (budgets[i - 1] ?? 0)
  );
  if (budgets.length === 0 || !isRising || budgets.at(-1)! >= tokens) {
    throw new RangeError(
      `Cannot measure losses at budgets ${
        budgets.join(", ")
      }: expected rising numbers of slots below the ${tokens} tokens of a text`,
    );
  }
  const windows = texts.map((text): ForcedWindow => ({
    prompt: text.slice(0, budgets[0]),
    continuation: text.slice(budgets[0]),
  }));
  const { layers, sizes: { kvHeads } } = model.config;
  const policies = budgets.map((slots) =>
    fixedWindow(model, policy({ budget: slots }))
  );
  const rows = await Array.fromAsync(
    forcedLogits(model, fullCache({ budget: tokens }), { windows, signal }),
  );
  const full = windows.map((_, text) => rows.map((row) => row[text]!));
  const loss = Array.from(
    { length: layers },
    () => Array.from({ length: kvHeads }, (): number[] => []),
  );
  const total = layers * kvHeads * budgets.length;
  let done = 0;
  onProgress?.(done, total);
  for (const [layer, heads] of loss.entries()) {
    for (const [kvHead, losses] of heads.entries()) {
      for (const own of policies) {
        const one = { layer, kvHead, tokens, layers, kvHeads };
        const other = forcedLogits(model, compressOne(own, one), {
          windows,
          signal,
        });
        const agreements = await compareLogits(full, other);
        const sum = agreements.reduce((s, { divergence }) => s + divergence, 0);
        losses.push(sum / texts.length);
        onProgress?.(++done, total);
      }
    }
  }
  return { budgets: [...budgets], tokens, loss };
}

/** The policy with the recent window that it has at its own budget. */
function fixedWindow(
  { config, backend }: EvaluationModel,
  policy: Policy,
): Policy {
  const [layer] = resolveBudget(policy, {
    ...config,
    sequences: 1,
    stageRows: 0,
    halfBytes: backend.halfBytes,
  });
  const { recent } = layer![0]!;
  return {
    ...policy,
    select: { ...policy.select, recent: { slots: recent } },
  };
}

/** The policy for one head, while all others have room for all tokens. */
function compressOne(
  policy: Policy,
  { layer, kvHead, tokens, layers, kvHeads }: {
    layer: number;
    kvHead: number;
    tokens: number;
    layers: number;
    kvHeads: number;
  },
): Policy {
  const slots = policy.budget as number;
  // What the head has less than `tokens` goes to its neighbours, so that all
  // shares are whole numbers of slots or round up to more than `tokens`.
  const share = (isOne: boolean, count: number) =>
    isOne ? slots : (tokens * count - slots) / (count - 1);
  const allocate: Allocate = kvHeads > 1
    ? {
      layers: { kind: "uniform" },
      heads: {
        kind: "shares",
        shares: Array.from({ length: layers }, (_, l) =>
          Array.from({ length: kvHeads }, (_, h) =>
            l === layer ? share(h === kvHead, kvHeads) : 1)),
      },
    }
    : {
      layers: {
        kind: "shares",
        shares: Array.from(
          { length: layers },
          (_, l) => share(l === layer, layers),
        ),
      },
      heads: { kind: "uniform" },
    };
  // A model of one head has no others.
  const budget = layers * kvHeads === 1 ? slots : tokens;
  return { ...policy, budget, allocate };
}
