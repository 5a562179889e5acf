/**
 * How much compressing a cache changes what attention reads from it.
 *
 * `L = ‖(o − ô) W_O‖₁` per head ("Identify Critical KV Cache", arXiv
 * 2502.03805, section 3): `o` is the output over the full cache of a prompt,
 * `ô` over the compressed one, both for queries of the model without
 * compression. See {@linkcode ProbeQueries} for which.
 *
 * @module
 */
import type { Policy } from "../policies/parts.ts";
import { fullCache } from "../policies/full_cache.ts";
import { attendOnHost, turnQuery } from "./host_attention.ts";
import { type CacheHead, type LiveSlot, readHeads } from "./live_slots.ts";
import { type EvaluationModel, openEngine } from "./model.ts";
import { OutputProjection } from "./output_projection.ts";
import { withSetting } from "./settings.ts";
import { TappedBackend } from "./tapped_backend.ts";
import type { TextWindow } from "./windows.ts";

/**
 * Whose queries are measured.
 *
 * - `after`: those of the tokens after the prompt, which are what a compressed
 *   cache is for. They read each other in full;
 * - `window`: those of the last tokens of the prompt, by which a policy with
 *   such a window has chosen. This is what the theorem speaks of, since its
 *   attention is known when slots are chosen. A query reads what is left of the
 *   slots up to its own position.
 */
export type ProbeQueries = typeof probeQueries[number];

/** All kinds of {@linkcode ProbeQueries}. */
export const probeQueries = ["after", "window"] as const;

/** What the model without compression reads at the probe tokens. */
export interface AttentionProbe {
  /** The prompt that is compressed. */
  readonly prompt: readonly number[];
  /** Position of the first probe token. */
  readonly first: number;
  /** `(layers)`. */
  readonly layers: readonly LayerProbe[];
}

/** One layer of an {@linkcode AttentionProbe}. */
export interface LayerProbe {
  /** `(probes, heads)` queries `(headDim)`, rotated. */
  readonly queries: readonly (readonly Float32Array[])[];
  /** `(kvHeads)`: keys and values of the tokens after the prompt. */
  readonly tails: readonly (readonly LiveSlot[])[];
  /** `(probes, heads)` outputs `(headDim)` over the full cache. */
  readonly outputs: readonly (readonly Float64Array[])[];
}

/** Perturbation of each head. */
export interface Perturbation {
  /** `(layers, heads)`: mean of `‖(o − ô) W_O‖₁` over the probe tokens. */
  readonly absolute: readonly (readonly number[])[];
  /** `(layers, heads)`: the same as a share of the mean of `‖o W_O‖₁`. */
  readonly relative: readonly (readonly number[])[];
}

/** Options of {@linkcode probeAttention}. */
export interface ProbeOptions {
  /** Whose queries are measured (default `"after"`). */
  readonly queries?: ProbeQueries | undefined;
}

/**
 * Reads a window with the full cache. Its continuation are the probe tokens, or
 * as many tokens at the end of its prompt.
 *
 * @throws {RangeError} If the prompt has no token before the probe tokens.
 */
export async function probeAttention(
  model: EvaluationModel,
  { prompt, continuation }: Pick<TextWindow, "prompt" | "continuation">,
  { queries: whose = "after" }: ProbeOptions = {},
): Promise<AttentionProbe> {
  const { heads, headDim } = model.config.sizes;
  const probes = continuation.length;
  const text = whose === "after" ? [...prompt, ...continuation] : prompt;
  const first = text.length - probes;
  if (first < 1) {
    throw new RangeError(
      `Cannot measure the last ${probes} queries of a prompt of ${prompt.length} tokens: expected fewer queries than tokens`,
    );
  }
  const policy = withSetting(
    fullCache({ budget: text.length }),
    "whole",
    { promptLength: Math.max(first, probes), chunk: 1 },
  );
  await using tap = new TappedBackend(model.backend, { queries: true });
  using engine = await openEngine(model, policy, { backend: tap });
  engine.prefill(text.slice(0, first), { then: "nothing" });
  engine.prefill(text.slice(first), { then: "nothing" });
  const [full] = await readHeads(engine.cache, model);
  const layers: LayerProbe[] = [];
  for (const [layer, cache] of full!.entries()) {
    const rows = await tap.readQueries(layer, probes * heads * headDim);
    const queries = Array.from(
      { length: probes },
      (_, row) =>
        Array.from({ length: heads }, (_, head) => {
          const at = (row * heads + head) * headDim;
          return rows.subarray(at, at + headDim);
        }),
    );
    const tails = cache.map(({ slots }) => slots.slice(prompt.length));
    const start = cache.map(({ slots }) => slots.slice(0, prompt.length));
    const outputs = readAll({ queries, tails }, start, {
      model,
      policy,
      first,
    });
    layers.push({ queries, tails, outputs });
  }
  return { prompt, first, layers };
}

/** Reads the prompt under a policy and compares what the probes read. */
export async function measurePerturbation(
  model: EvaluationModel,
  policy: Policy,
  { prompt, first, layers }: AttentionProbe,
): Promise<Perturbation> {
  using engine = await openEngine(model, policy);
  for (const piece of engine.pieces(prompt)) {
    engine.prefill(piece, { then: "nothing" });
    await engine.done();
  }
  const [compressed] = await readHeads(engine.cache, model);
  const probes = layers[0]!.queries.length;
  using projection = new OutputProjection(model.backend, {
    weights: await model.weights(),
    sizes: model.config.sizes,
    probes,
  });
  const absolute: number[][] = [];
  const relative: number[][] = [];
  for (const [index, layer] of layers.entries()) {
    const slots = compressed![index]!.map((head: CacheHead) => head.slots);
    const outputs = readAll(layer, slots, { model, policy, first });
    const difference = layer.outputs.map((row, probe) =>
      row.map((o, head) => o.map((x, i) => x - outputs[probe]![head]![i]!))
    );
    const changes = await projection.norms(index, difference);
    const norms = await projection.norms(index, layer.outputs);
    absolute.push(changes.map((sum) => sum / probes));
    relative.push(changes.map((sum, head) => sum / norms[head]!));
  }
  return { absolute, relative };
}

/**
 * What every probe and head reads: `(probes, heads)` outputs `(headDim)`.
 *
 * @param slots `(kvHeads)` slots that stand for the prompt.
 * @param first Position of the first probe.
 */
function readAll(
  { queries, tails }: Pick<LayerProbe, "queries" | "tails">,
  slots: readonly (readonly LiveSlot[])[],
  { model: { config }, policy: { select }, first }: {
    model: EvaluationModel;
    policy: Policy;
    first: number;
  },
): Float64Array[][] {
  const group = config.sizes.heads / config.sizes.kvHeads;
  return queries.map((row, probe) => {
    const position = first + probe;
    const visible = slots.map((own, kvHead) =>
      [...own, ...tails[kvHead]!].filter((slot) => slot.position <= position)
    );
    return row.map((query, head) => {
      const seen = visible[Math.floor(head / group)]!;
      // The place in the cache is the number of slots before the token.
      const place = seen.filter((slot) => slot.position < position).length;
      const distance = place - position;
      return attendOnHost({
        query,
        slots: seen,
        lane: head % group,
        ...(select.sinkPositions === "cache" && distance !== 0 && {
          sinks: {
            query: turnQuery(query, distance, config),
            end: select.sinks,
          },
        }),
      });
    });
  });
}
