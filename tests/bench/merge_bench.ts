// What merging costs: decode steps that merge one slot each, beside decode
// steps over as many slots that merge none.
import { benchBackends } from "./bench_backends.ts";
import { decoding, decodingWithoutMerges, STEPS } from "./subjects.ts";

await benchBackends(`merging, ${STEPS} decode steps`, {
  "no merge": decodingWithoutMerges,
  "a merge per step": decoding,
});
