/** Weights of any shape in seconds, without a file. */
import type { Backend } from "../../../src/backends/backend.ts";
import type { ModelConfig } from "../../../src/model/config.ts";
import { randomNormals } from "../../../src/model/random_weights.ts";
import { allocateWeights } from "../../../src/model/weight_allocation.ts";
import { planWeights } from "../../../src/model/weight_plan.ts";
import type { Weights } from "../../../src/model/weights.ts";
import { RandomBlock } from "./random_block.ts";

/**
 * Allocates weights that are spread like those of `randomWeights`, but are not
 * drawn one by one: matrices repeat the numbers of a block, or are drawn on the
 * device where it can. Activations keep their size, and that is all.
 */
export function speedWeights(backend: Backend, config: ModelConfig): Weights {
  const { weights, targets } = allocateWeights(backend, planWeights(config));
  using block = new RandomBlock(backend, 1);
  try {
    for (const target of targets) {
      if ("matrix" in target) {
        const deviation = 1 / Math.sqrt(target.plan.columns);
        block.fillMatrix(target.matrix, deviation);
        continue;
      }
      const { length, role } = target.plan;
      const mean = role === "norm" ? 1 : 0;
      backend.write(
        target.buffer,
        randomNormals(length, { mean, deviation: 0.1, seed: 1 }),
      );
    }
  } catch (error) {
    weights[Symbol.dispose]();
    throw error;
  }
  return weights;
}
