import { policyNumbers } from "../../src/backends/cuda/policy_numbers.ts";
import type { Policy } from "../../src/policies/parts.ts";

/** What CUDA kernels say of a policy that they do not know; else undefined. */
export function unknownPart(policy: Policy): string | undefined {
  try {
    policyNumbers(policy);
  } catch (error) {
    if (error instanceof RangeError) return error.message;
    throw error;
  }
}
