/**
 * The forward pass, written once for every backend and every policy.
 *
 * @module
 */
import type {
  CacheLayer,
  DeviceBuffer,
  Kernels,
  ModelSizes,
  Step,
} from "../backends/backend.ts";
import type { Policy } from "../policies/parts.ts";
import type { Weights } from "./weights.ts";

/** Buffers between kernels, all f32; one set serves every layer. */
export interface Activations {
  /** `(rows, hidden)`: the residual stream. */
  readonly hidden: DeviceBuffer;
  /** `(rows, heads, headDim)`: rotated queries. */
  readonly queries: DeviceBuffer;
  /** `(rows, heads, headDim)`, where sinks have cache positions. */
  readonly sinkQueries?: DeviceBuffer;
  /** `(rows, heads, headDim)`: attention output. */
  readonly attention: DeviceBuffer;
  /** `(rows, heads)`: ln of the softmax sums of a chunk. */
  readonly logSums: DeviceBuffer;
  /** `(rows, ffn)`. */
  readonly ffn: DeviceBuffer;
}

/** What a forward pass reads and writes. */
export interface ForwardPass {
  readonly weights: Weights;
  readonly sizes: ModelSizes;
  /** `(3, 256, headDim / 2, 2)` f32: see `rope.ts`. */
  readonly rope: DeviceBuffer;
  /** `(headDim / 2, 2)` f32, where queries are expected: see `meanRotation`. */
  readonly ahead?: DeviceBuffer;
  readonly layers: readonly CacheLayer<DeviceBuffer>[];
  readonly policy: Policy;
  readonly step: Step<DeviceBuffer>;
  readonly activations: Activations;
  /** `(sequences, ceil(vocabulary / 32))` u32: ids seen. */
  readonly seen: DeviceBuffer;
}

/** Takes the tokens of a step through all layers. */
export function forward(kernels: Kernels, pass: ForwardPass): void {
  const { weights, sizes, rope, ahead, policy, step, activations } = pass;
  const { hidden, queries, attention, logSums, ffn } = activations;
  const sinks = activations.sinkQueries === undefined
    ? {}
    : { sinkQueries: activations.sinkQueries };
  kernels.embed({
    hidden,
    seen: pass.seen,
    embedding: weights.embedding,
    step,
    sizes,
  });
  pass.layers.forEach((cache, index) => {
    const layer = weights.layers[index]!;
    kernels.qkvRopeAppend({
      queries,
      ...sinks,
      hidden,
      norm: layer.attentionNorm,
      weight: layer.qkv,
      ...(layer.qkvBias && { bias: layer.qkvBias }),
      ...(layer.queryNorm && { queryNorm: layer.queryNorm }),
      ...(layer.keyNorm && { keyNorm: layer.keyNorm }),
      rope,
      cache,
      step,
      sizes,
    });
    if (policy.values.kind === "norm") {
      const { of } = policy.values;
      kernels.valueNorms({
        ...(of === "projected" && { weight: layer.output }),
        cache,
        step,
        sizes,
      });
    }
    const attend = { queries, ...sinks, cache, step, sizes, policy };
    if (ahead !== undefined) {
      kernels.queryStatistics({ rope, ahead, ...attend });
    }
    if (step.kind === "decode") {
      kernels.mergeAttend({ output: attention, ...attend });
    } else {
      kernels.prefillAttend({ output: attention, logSums, ...attend });
      if (policy.probe.kind !== "none") {
        kernels.observe({ logSums, ...attend });
      }
      kernels.compress({ logSums, ...attend });
    }
    kernels.projectAdd({
      hidden,
      input: attention,
      weight: layer.output,
      ...(layer.outputBias && { bias: layer.outputBias }),
      step,
    });
    kernels.gateUp({
      output: ffn,
      hidden,
      norm: layer.ffnNorm,
      weight: layer.gateUp,
      ...(layer.gateUpBias && { bias: layer.gateUpBias }),
      step,
      sizes,
    });
    kernels.projectAdd({
      hidden,
      input: ffn,
      weight: layer.down,
      ...(layer.downBias && { bias: layer.downBias }),
      step,
    });
  });
}
