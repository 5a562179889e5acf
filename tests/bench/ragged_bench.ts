// What head-wise budgets cost: decode steps over heads of different sizes,
// beside decode steps over even heads with as many slots in all.
import { benchBackends } from "./bench_backends.ts";
import { decodingEvenHeads, decodingRaggedHeads, STEPS } from "./subjects.ts";

// A few percent are looked for. Four rounds after one that warms up were not
// enough for that: on a CPU the first second is that of the compiler, and the
// variant that happens to come first pays for it.
await benchBackends(`head-wise budgets, ${STEPS} decode steps`, {
  "even heads": decodingEvenHeads,
  "ragged heads": decodingRaggedHeads,
}, { warmup: 4 });
