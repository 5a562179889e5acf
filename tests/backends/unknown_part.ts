import { policyNumbers } from "../../src/backends/cuda/policy_numbers.ts";
import { modelSizes } from "../kernels/matrix_cases.ts";
import type { Policy } from "../../src/policies/parts.ts";

const sizes = modelSizes({ heads: 1, kvHeads: 1, headDim: 4 });

/** What CUDA kernels say of a policy that they do not know; else undefined. */
export function unknownPart(policy: Policy): string | undefined {
  try {
    policyNumbers(policy, sizes);
  } catch (error) {
    if (error instanceof RangeError) return error.message;
    throw error;
  }
}
