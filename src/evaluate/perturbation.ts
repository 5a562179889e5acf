/**
 * How much compressing a cache changes what attention reads from it.
 *
 * `L = ‖(o − ô) W_O‖₁` per head ("Identify Critical KV Cache", arXiv
 * 2502.03805, section 3): `o` is the output over the full cache of a prompt,
 * `ô` over the compressed one, both for the queries that the model without
 * compression has at the tokens after the prompt. Those tokens themselves are
 * read in full by both.
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

/** What the model without compression reads at the tokens after a prompt. */
export interface AttentionProbe {
  /** The prompt; the tokens after it are the probe tokens. */
  readonly prompt: readonly number[];
  /** `(layers)`. */
  readonly layers: readonly LayerProbe[];
}

/** One layer of an {@linkcode AttentionProbe}. */
export interface LayerProbe {
  /** `(probes, heads)` queries `(headDim)`, rotated. */
  readonly queries: readonly (readonly Float32Array[])[];
  /** `(kvHeads, probes)`: keys and values of the probe tokens. */
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

/** Reads a window with the full cache; its continuation are the probe tokens. */
export async function probeAttention(
  model: EvaluationModel,
  { prompt, continuation }: Pick<TextWindow, "prompt" | "continuation">,
): Promise<AttentionProbe> {
  const { heads, headDim } = model.config.sizes;
  const policy = withSetting(
    fullCache({ budget: prompt.length + continuation.length }),
    "whole",
    { promptLength: Math.max(prompt.length, continuation.length), chunk: 1 },
  );
  await using tap = new TappedBackend(model.backend, { queries: true });
  using engine = await openEngine(model, policy, { backend: tap });
  engine.prefill(prompt, { then: "nothing" });
  engine.prefill(continuation, { then: "nothing" });
  const [full] = await readHeads(engine.cache, model);
  const layers: LayerProbe[] = [];
  for (const [layer, cache] of full!.entries()) {
    const rows = await tap.readQueries(
      layer,
      continuation.length * heads * headDim,
    );
    const queries = continuation.map((_, row) =>
      Array.from({ length: heads }, (_, head) => {
        const at = (row * heads + head) * headDim;
        return rows.subarray(at, at + headDim);
      })
    );
    const tails = cache.map(({ slots }) => slots.slice(prompt.length));
    const start = cache.map(({ slots }) => slots.slice(0, prompt.length));
    const outputs = readAll({ queries, tails }, start, {
      model,
      policy,
      promptLength: prompt.length,
    });
    layers.push({ queries, tails, outputs });
  }
  return { prompt, layers };
}

/** Reads the prompt under a policy and compares what the probes read. */
export async function measurePerturbation(
  model: EvaluationModel,
  policy: Policy,
  { prompt, layers }: AttentionProbe,
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
    const outputs = readAll(layer, slots, {
      model,
      policy,
      promptLength: prompt.length,
    });
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
 */
function readAll(
  { queries, tails }: Pick<LayerProbe, "queries" | "tails">,
  slots: readonly (readonly LiveSlot[])[],
  { model: { config }, policy: { select }, promptLength }: {
    model: EvaluationModel;
    policy: Policy;
    promptLength: number;
  },
): Float64Array[][] {
  const group = config.sizes.heads / config.sizes.kvHeads;
  return queries.map((row, probe) =>
    row.map((query, head) => {
      const kvHead = Math.floor(head / group);
      const start = slots[kvHead]!;
      // The place in the cache is the number of slots before the token.
      const distance = start.length - promptLength;
      return attendOnHost({
        query,
        slots: [...start, ...tails[kvHead]!.slice(0, probe + 1)],
        lane: head % group,
        ...(select.sinkPositions === "cache" && distance !== 0 && {
          sinks: {
            query: turnQuery(query, distance, config),
            end: select.sinks,
          },
        }),
      });
    })
  );
}
