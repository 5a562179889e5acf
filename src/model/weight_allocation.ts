/**
 * Device memory for the weights of a plan.
 *
 * @module
 */
import type {
  Backend,
  DeviceBuffer,
  DeviceMatrix,
} from "../backends/backend.ts";
import type {
  LayerPlan,
  MatrixPlan,
  VectorPlan,
  WeightPlan,
} from "./weight_plan.ts";
import type { LayerWeights, Weights } from "./weights.ts";

/** A weight and the memory that takes it. */
export type WeightTarget =
  | { readonly plan: MatrixPlan; readonly matrix: DeviceMatrix }
  | { readonly plan: VectorPlan; readonly buffer: DeviceBuffer };

/**
 * Allocates the weights of a plan, all zero. Nothing stays allocated if the
 * device refuses a part.
 *
 * @returns The weights, and what has to be filled in the order of the files.
 */
export function allocateWeights(
  backend: Backend,
  plan: WeightPlan,
): { weights: Weights; targets: readonly WeightTarget[] } {
  using memory = new DisposableStack();
  const targets: WeightTarget[] = [];
  const matrix = (plan: MatrixPlan): DeviceMatrix => {
    const { label, rows, columns, rowGroup } = plan;
    const matrix = memory.use(
      backend.allocateMatrix(label, { rows, columns, rowGroup }),
    );
    targets.push({ plan, matrix });
    return matrix;
  };
  const vector = (plan: VectorPlan): DeviceBuffer => {
    const buffer = memory.use(backend.allocate(plan.label, "f32", plan.length));
    targets.push({ plan, buffer });
    return buffer;
  };

  const embedding = matrix(plan.embedding);
  const layers = plan.layers.map((layer) =>
    allocateLayer(layer, { matrix, vector })
  );
  const norm = vector(plan.norm);
  const head = plan.head === undefined ? embedding : matrix(plan.head);
  const byteLength = targets.reduce(
    (sum, target) =>
      sum +
      ("matrix" in target ? target.matrix : target.buffer).byteLength,
    0,
  );
  const owned = memory.move();
  const weights: Weights = {
    embedding,
    layers,
    norm,
    head,
    byteLength,
    [Symbol.dispose]: () => owned.dispose(),
  };
  return { weights, targets };
}

/** Allocates the weights of one layer. */
function allocateLayer(
  plan: LayerPlan,
  { matrix, vector }: {
    matrix: (plan: MatrixPlan) => DeviceMatrix;
    vector: (plan: VectorPlan) => DeviceBuffer;
  },
): LayerWeights {
  return {
    attentionNorm: vector(plan.attentionNorm),
    qkv: matrix(plan.qkv),
    ...(plan.qkvBias && { qkvBias: vector(plan.qkvBias) }),
    ...(plan.queryNorm && { queryNorm: vector(plan.queryNorm) }),
    ...(plan.keyNorm && { keyNorm: vector(plan.keyNorm) }),
    output: matrix(plan.output),
    ...(plan.outputBias && { outputBias: vector(plan.outputBias) }),
    ffnNorm: vector(plan.ffnNorm),
    gateUp: matrix(plan.gateUp),
    ...(plan.gateUpBias && { gateUpBias: vector(plan.gateUpBias) }),
    down: matrix(plan.down),
    ...(plan.downBias && { downBias: vector(plan.downBias) }),
  };
}
