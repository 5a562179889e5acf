/**
 * The functions of the CUDA library: `cuda/steadykv.h`, where each is described.
 *
 * Enqueueing is blocking, because it takes a few microseconds; only the wait for
 * a read is not.
 *
 * @module
 */
import type { Precision } from "../../policies/parts.ts";

/** Version of the interface that this package speaks: `SKV_ABI_VERSION`. */
export const ABI_VERSION = 5;

/** What functions return: `enum skv_status`. */
export const Status = {
  ok: 0,
  invalid: 1,
  outOfMemory: 2,
  tooLarge: 3,
  noDevice: 4,
  architecture: 5,
  kernel: 6,
  deviceLost: 7,
} as const;

/** Flag of `skv_open`: `SKV_CHECK_EVERY_KERNEL`. */
export const CHECK_EVERY_KERNEL = 1;

/** Flag of `skv_open`: `SKV_OWN_PRODUCTS`. */
export const OWN_PRODUCTS = 2;

/** What a buffer or a matrix holds: `enum skv_element`. */
export const Element = { word: 0, half: 1, cached: 2 } as const;

/** What caches hold, by what `skv_cache_type` says: `enum skv_cache_type_id`. */
export const CACHE_TYPES = ["half", "bfloat16"] as const satisfies readonly (
  Precision["kind"]
)[];

/** The function that libraries of all versions have. */
export const versionSymbols = {
  // uint32_t skv_abi_version(void)
  skv_abi_version: { parameters: [], result: "u32" },
} as const satisfies Deno.ForeignLibraryInterface;

/** A kernel of a program that is being recorded. */
const kernel = {
  parameters: [
    "pointer", // skv_program *program
    "buffer", // const skv_…_args *args
    "u64", // uint64_t size
  ],
  result: "i32",
} as const;

/** All functions. */
export const symbols = {
  ...versionSymbols,
  // uint32_t skv_cache_type(void)
  skv_cache_type: { parameters: [], result: "u32" },
  skv_last_error: {
    parameters: [
      "pointer", // skv_context *context
      "buffer", // uint8_t *text
      "u64", // uint64_t capacity
    ],
    result: "void",
  },
  skv_open: {
    parameters: [
      "u32", // uint32_t index
      "u32", // uint32_t flags
      "buffer", // skv_context **context
    ],
    result: "i32",
  },
  skv_close: {
    parameters: [
      "pointer", // skv_context *context
    ],
    result: "void",
  },
  skv_describe: {
    parameters: [
      "pointer", // skv_context *context
      "buffer", // skv_device_info *info
    ],
    result: "i32",
  },
  skv_allocate: {
    parameters: [
      "pointer", // skv_context *context
      "u64", // uint64_t bytes
      "buffer", // uint64_t *address
    ],
    result: "i32",
  },
  skv_free: {
    parameters: [
      "pointer", // skv_context *context
      "u64", // uint64_t address
    ],
    result: "i32",
  },
  skv_write: {
    parameters: [
      "pointer", // skv_context *context
      "u64", // uint64_t address
      "buffer", // const uint8_t *data
      "u64", // uint64_t bytes
    ],
    result: "i32",
  },
  skv_write_rows: {
    parameters: [
      "pointer", // skv_context *context
      "u64", // uint64_t address
      "buffer", // const float *data
      "buffer", // const skv_rows *rows
      "u32", // uint32_t element
    ],
    result: "i32",
  },
  skv_read: {
    parameters: [
      "pointer", // skv_context *context
      "u64", // uint64_t address
      "u64", // uint64_t count
      "u32", // uint32_t element
      "buffer", // uint32_t *ticket
    ],
    result: "i32",
  },
  skv_wait: {
    parameters: [
      "pointer", // skv_context *context
      "u32", // uint32_t ticket
      "buffer", // uint8_t *data
      "u64", // uint64_t bytes
    ],
    result: "i32",
    nonblocking: true,
  },
  skv_synchronize: {
    parameters: [
      "pointer", // skv_context *context
    ],
    result: "i32",
  },
  skv_fill_normal: {
    parameters: [
      "pointer", // skv_context *context
      "u64", // uint64_t address
      "buffer", // const skv_rows *rows
      "f32", // float deviation
      "u64", // uint64_t seed
    ],
    result: "i32",
  },
  skv_measure_read: {
    parameters: [
      "pointer", // skv_context *context
      "u64", // uint64_t bytes
      "u32", // uint32_t times
      "buffer", // double *bytes_per_second
    ],
    result: "i32",
  },
  skv_begin_record: {
    parameters: [
      "pointer", // skv_context *context
      "buffer", // skv_program **program
    ],
    result: "i32",
  },
  skv_embed: kernel,
  skv_qkv_rope_append: kernel,
  skv_value_norms: kernel,
  skv_query_statistics: kernel,
  skv_merge_attend: kernel,
  skv_prefill_attend: kernel,
  skv_observe: kernel,
  skv_compress: kernel,
  skv_project_add: kernel,
  skv_gate_up: kernel,
  skv_lm_head: kernel,
  skv_sample: kernel,
  skv_end_record: {
    parameters: [
      "pointer", // skv_program *program
      "buffer", // uint64_t *scratch_bytes
    ],
    result: "i32",
  },
  skv_run: {
    parameters: [
      "pointer", // skv_program *program
      "u32", // uint32_t times
    ],
    result: "i32",
  },
  skv_dispose: {
    parameters: [
      "pointer", // skv_program *program
    ],
    result: "void",
  },
} as const satisfies Deno.ForeignLibraryInterface;

/** The functions of an open library. */
export type CudaSymbols = Deno.DynamicLibrary<typeof symbols>["symbols"];

/** Names of the functions that record a kernel. */
export type KernelSymbol = {
  [K in keyof typeof symbols]: (typeof symbols)[K] extends typeof kernel ? K
    : never;
}[keyof typeof symbols];
