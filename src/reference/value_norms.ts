import {
  type HostTensor,
  SlotField,
  type ValueNorms,
} from "../backends/backend.ts";
import { dot } from "./arithmetic.ts";
import {
  HeadView,
  type HostMatrix,
  liveRows,
  setFloat,
  valueOf,
} from "./host.ts";

/**
 * Reference of `value_norms`: the norm of each value that `qkv_rope_append`
 * has just written.
 *
 * With an output projection it is `u = mean over the heads h of the group of
 * ‖v · W_O[h]‖₁` (CriticalKV, arXiv 2502.03805, theorem 3.3, where the head
 * of a query has a value of its own; groups take the mean as the authors' code
 * does). Without one it is `‖v‖₂`.
 */
export function valueNorms(args: ValueNorms<HostTensor, HostMatrix>): void {
  const { cache, step, sizes, weight } = args;
  const { heads, kvHeads, headDim } = sizes;
  const group = heads / kvHeads;
  for (const { row, sequence } of liveRows(step)) {
    for (let kvHead = 0; kvHead < kvHeads; kvHead++) {
      const view = new HeadView(cache, { sequence, kvHead, kvHeads });
      const next = view.get("next");
      if (step.kind === "decode" && next >= view.get("capacity")) continue;
      const slot = step.kind === "decode" ? view.slot(next) : view.staged(row);
      const value = valueOf(slot, headDim);
      let norm = 0;
      if (weight === undefined) {
        norm = Math.sqrt(dot(value, value));
      } else {
        for (let g = 0; g < group; g++) {
          const first = (kvHead * group + g) * headDim;
          for (let i = 0; i < weight.rows; i++) {
            const at = i * weight.columns + first;
            norm += Math.abs(dot(value, weight.f32, at)) / group;
          }
        }
      }
      setFloat(slot, SlotField.valueNorm, norm);
    }
  }
}
