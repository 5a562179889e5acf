// What head-wise budgets cost: decode steps over heads of different sizes,
// beside decode steps over even heads with as many slots in all.
import { benchBackends } from "./bench_backends.ts";
import { decodingEvenHeads, decodingRaggedHeads, STEPS } from "./subjects.ts";

await benchBackends(`head-wise budgets, ${STEPS} decode steps`, {
  "even heads": decodingEvenHeads,
  "ragged heads": decodingRaggedHeads,
});
