// Decode steps with a cache that is full.
import { benchBackends } from "./bench_backends.ts";
import { decoding, STEPS } from "./subjects.ts";

await benchBackends(`${STEPS} decode steps`, { "": decoding });
