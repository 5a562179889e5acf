/**
 * Sizes of the tiles of `shaders/lib/search.wgsl`.
 *
 * @module
 */
import type { ModelSizes } from "../../backend.ts";
import type { Policy } from "../../../policies/parts.ts";
import type { Constants } from "../pipelines.ts";

/** Constants of the search; its workgroups each take `PROPOSERS` slots. */
export function searchConstants(
  { merge }: Policy,
  { headDim }: ModelSizes,
): Constants & { readonly PROPOSERS: number } {
  const half = headDim / 2;
  const isPair = merge.kind === "pair";
  // Values beside keys: half as many vectors in the same memory.
  const proposers = isPair ? 16 : 32;
  // Two tiles in workgroup memory: narrower for the widest heads.
  const targets = headDim > 128 ? 16 : 32;
  return {
    PROPOSERS: proposers,
    TARGET_TILE: targets,
    PROPOSER_WORDS: proposers * half * (isPair ? 2 : 1),
    TARGET_WORDS: targets * (half + 1),
  };
}
