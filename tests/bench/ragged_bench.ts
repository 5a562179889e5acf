// What head-wise budgets cost: decode steps over heads of different sizes,
// beside decode steps over even heads with as many slots in all.
import { benchBackends } from "./bench_backends.ts";
import { decodingEvenHeads, decodingRaggedHeads, STEPS } from "./subjects.ts";

// A few percent are looked for, and four rounds after one that warms up do not
// show them: the compiler is at work for the first second on a CPU, and a GPU is
// done with four rounds in milliseconds.
await benchBackends(`head-wise budgets, ${STEPS} decode steps`, {
  "even heads": decodingEvenHeads,
  "ragged heads": decodingRaggedHeads,
}, { warmup: 4 });
