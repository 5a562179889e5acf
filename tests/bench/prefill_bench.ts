// A chunk of a prompt, read into a cache that is full.
import { benchBackends } from "./bench_backends.ts";
import { CHUNK, prefilling } from "./subjects.ts";

await benchBackends(`prefill of ${CHUNK} tokens`, { "": prefilling });
