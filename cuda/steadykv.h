/**
 * SteadyKV's CUDA library, seen from outside.
 *
 * A context is one device and one stream. Memory is named by its address on the
 * device. A program is a list of kernel calls, recorded once and turned into a
 * CUDA graph; running it `times` times is one call of this interface.
 *
 * Functions return a status. Any but SKV_OK leaves a sentence for
 * skv_last_error. Every function sets the device first, so any thread may call;
 * one context takes one caller at a time, but for skv_wait, which may run on
 * other threads, several at once.
 *
 * Pointers in argument structs are addresses on the device. The structs are
 * described again in src/backends/cuda/structs.ts; a test compares the two.
 */
#pragma once

#include <stdint.h>

#if defined(__GNUC__)
#define SKV_API __attribute__((visibility("default")))
#else
#define SKV_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/** Version of this interface; a library of another version is not used. */
#define SKV_ABI_VERSION 5

/** What a function returns. */
enum skv_status {
  SKV_OK = 0,
  /** An argument is out of range. */
  SKV_INVALID = 1,
  /** The device or the host has not enough memory. */
  SKV_OUT_OF_MEMORY = 2,
  /** A number is too large for the 16 bits that it would have. */
  SKV_TOO_LARGE = 3,
  /** There is no driver or no device. */
  SKV_NO_DEVICE = 4,
  /** The library holds no code for the device. */
  SKV_ARCHITECTURE = 5,
  /** A kernel failed; the process cannot use the device any more. */
  SKV_KERNEL = 6,
  /** The device is gone. */
  SKV_DEVICE_LOST = 7
};

/** One device and one stream. */
typedef struct skv_context skv_context;

/** A recorded list of kernel calls. */
typedef struct skv_program skv_program;

/** A 16-bit float, by its bits. */
typedef uint16_t skv_half;

/**
 * An element of a key or a value, by its bits: a 16-bit float, or a bfloat16 in
 * a library that was built for caches of that type.
 */
typedef struct skv_cached {
  uint16_t bits;
} skv_cached;

/** What caches hold, for skv_cache_type. */
enum skv_cache_type_id { SKV_CACHE_IS_HALF = 0, SKV_CACHE_IS_BFLOAT16 = 1 };

/** What a buffer or a matrix holds. */
enum skv_element { SKV_WORD = 0, SKV_HALF = 1, SKV_CACHED = 2 };

/** Flag of skv_open: every kernel is waited for, so that faults have a name. */
#define SKV_CHECK_EVERY_KERNEL 1u

/** Flag of skv_open: no product is left to NVIDIA's library. */
#define SKV_OWN_PRODUCTS 2u

/** A weight matrix, one row per output. */
typedef struct skv_matrix {
  /** (rows, pitch) */
  skv_half *data;
  uint32_t rows;
  uint32_t columns;
  /** Halves from one row to the next: columns rounded up to 8, zero filled. */
  uint32_t pitch;
  uint32_t reserved;
} skv_matrix;

/** Sizes of a model: see ModelSizes. */
typedef struct skv_sizes {
  uint32_t hidden;
  uint32_t heads;
  uint32_t kv_heads;
  uint32_t head_dim;
  uint32_t ffn;
  uint32_t vocabulary;
  float norm_epsilon;
  uint32_t reserved;
} skv_sizes;

/** What a step is. */
enum skv_step_kind { SKV_DECODE = 0, SKV_PREFILL = 1 };

/** The rows that a program works on: see Step, ChunkWord and StateWord. */
typedef struct skv_step {
  /** (rows) */
  uint32_t *tokens;
  /** (4) */
  uint32_t *chunk;
  /** (sequences, 8) */
  uint32_t *state;
  uint32_t kind;
  uint32_t rows;
} skv_step;

/** Slots of a layer, or staged rows: see Slots and SlotField. */
typedef struct skv_slots {
  /** (total, head_dim) */
  skv_cached *keys;
  /** (total, head_dim) */
  skv_cached *values;
  /** (6 + lanes, total) floats and words; two fields more where slots
   * remember a partner */
  float *side;
  uint32_t total;
  uint32_t reserved;
} skv_slots;

/** One layer of the cache: see CacheLayer and HeadWord. */
typedef struct skv_cache {
  skv_slots slots;
  /** (kv_heads, stage_rows) slots */
  skv_slots stage;
  /** (layers, sequences, kv_heads, 16) */
  uint32_t *table;
  /** (sequences, heads, 3 head_dim + 1), or null */
  float *statistics;
  uint32_t layer;
  uint32_t sequences;
  uint32_t lanes;
  uint32_t max_capacity;
  uint32_t stage_rows;
  uint32_t reserved;
} skv_cache;

/** Parts of a policy: see Policy. */
enum skv_probe {
  SKV_PROBE_NONE = 0,
  SKV_PROBE_ALL = 1,
  SKV_PROBE_LAST = 2,
  SKV_PROBE_INSTRUCTION = 3
};
enum skv_score {
  SKV_SCORE_POSITION = 0,
  SKV_SCORE_ACCUMULATED = 1,
  SKV_SCORE_EMA = 2,
  SKV_SCORE_MEAN = 3,
  SKV_SCORE_LAST = 4,
  SKV_SCORE_AGE = 5,
  SKV_SCORE_KEY_DISTANCE = 6,
  SKV_SCORE_STEP_GAIN = 7,
  SKV_SCORE_EXPECTED = 8
};
enum skv_pool { SKV_POOL_NONE = 0, SKV_POOL_MEAN = 1, SKV_POOL_MAX = 2 };
enum skv_merge {
  SKV_MERGE_NEVER = 0,
  SKV_MERGE_DROP = 1,
  SKV_MERGE_VOTES = 2,
  SKV_MERGE_RIGHT_NEIGHBOUR = 3,
  SKV_MERGE_PAIR = 4,
  SKV_MERGE_COSINE = 5,
  SKV_MERGE_NEXT_VALUES = 6,
  SKV_MERGE_SEGMENTS = 7
};
enum skv_key {
  SKV_KEY_ZIP = 0,
  SKV_KEY_MIN_NORM = 1,
  SKV_KEY_REAL_VOTES = 2,
  SKV_KEY_CONVEX = 3
};

/** A policy's numbers. */
typedef struct skv_policy {
  uint32_t probe;
  uint32_t probe_rows;
  uint32_t score;
  /** ln alpha and ln (1 - alpha) of the moving sum; -1e30 stands for ln 0. */
  float log_alpha;
  float log_rest;
  uint32_t raw_scale;
  uint32_t count_votes;
  uint32_t sinks;
  uint32_t merge;
  uint32_t key;
  float threshold;
  uint32_t merge_first;
  float guard_low;
  float guard_high;
  /** Whether anything reads the scores of slots. */
  uint32_t observe;
  /** Whether scores count times the norms of values. */
  uint32_t count_values;
  /** Power of the norms. */
  uint32_t value_power;
  /** What is added to scores then, and its logarithm. */
  float value_epsilon;
  float log_value_epsilon;
  /** Share of the slots with room that stay by their scores alone. */
  float first_stage;
  uint32_t pool;
  uint32_t pool_reach;
  /** Whether the heads of a layer share the mean of their scores. */
  uint32_t layer_scope;
  /** Whether a right neighbour's value keeps the current output exactly. */
  uint32_t exact_values;
  float ratio_cap;
  /** Whether compress gives the heads their budgets, and the even share. */
  uint32_t adaptive;
  uint32_t floor_parts;
  /** Steps from one search for partners to the next, at most; 0 where slots
   * remember none. And slots of a head's budget for each of these. */
  uint32_t search_every;
  uint32_t search_slots;
  /** Rounds of pairing that a chunk gets. */
  uint32_t rounds;
  /** Whether distances of keys and values are multiplied or added. */
  uint32_t product_distance;
  /** What squared distances of keys count, the root of the width in it. */
  float key_weight;
  float value_weight;
  /** Weight of the past in the threshold of cosines. */
  float threshold_keep;
  /** Positions after a slot that take its value in. */
  uint32_t next_count;
  /** Whether the probability of that stands for a draw, and the seed of it. */
  uint32_t expected_values;
  uint32_t draw_seed;
  /** Share of the slots that stay which is not merged into segments. */
  float heavy;
} skv_policy;

/** Arguments of the kernels: see the interfaces of the same names. */
typedef struct skv_embed_args {
  /** (rows, hidden) */
  float *hidden;
  /** (sequences, ceil(vocabulary / 32)) */
  uint32_t *seen;
  skv_matrix embedding;
  skv_step step;
  skv_sizes sizes;
} skv_embed_args;

typedef struct skv_qkv_rope_append_args {
  /** (rows, heads, head_dim) */
  float *queries;
  /** The same for sinks, or null. */
  float *sink_queries;
  /** (rows, hidden) */
  const float *hidden;
  /** (hidden) */
  const float *norm;
  /** ((heads + 2 kv_heads) head_dim), or null */
  const float *bias;
  /** (head_dim), or null */
  const float *query_norm;
  /** (head_dim), or null */
  const float *key_norm;
  /** (3, 256, head_dim / 2, 2) */
  const float *rope;
  skv_matrix weight;
  skv_cache cache;
  skv_step step;
  skv_sizes sizes;
} skv_qkv_rope_append_args;

typedef struct skv_value_norms_args {
  /** (hidden, heads * head_dim); no data for norms of the values themselves */
  skv_matrix weight;
  skv_cache cache;
  skv_step step;
  skv_sizes sizes;
} skv_value_norms_args;

typedef struct skv_query_statistics_args {
  /** (rows, heads, head_dim) */
  const float *queries;
  /** (3, 256, head_dim / 2, 2) */
  const float *rope;
  /** (head_dim / 2, 2): mean of the rotations by the next positions */
  const float *ahead;
  skv_cache cache;
  skv_step step;
  skv_sizes sizes;
  /** First tokens of the text, whose queries do not count. */
  uint32_t sinks;
  uint32_t reserved;
} skv_query_statistics_args;

typedef struct skv_merge_attend_args {
  /** (rows, heads, head_dim) */
  float *output;
  /** (rows, heads, head_dim) */
  const float *queries;
  /** The same for sinks, or null. */
  const float *sink_queries;
  skv_cache cache;
  skv_step step;
  skv_sizes sizes;
  skv_policy policy;
} skv_merge_attend_args;

/** Arguments of prefill_attend, observe and compress. */
typedef struct skv_chunk_args {
  /** (rows, heads, head_dim); of prefill_attend alone */
  float *output;
  /** (rows, heads): ln of the softmax sums; written by prefill_attend */
  float *log_sums;
  /** (rows, heads, head_dim) */
  const float *queries;
  /** The same for sinks, or null. */
  const float *sink_queries;
  skv_cache cache;
  skv_step step;
  skv_sizes sizes;
  skv_policy policy;
} skv_chunk_args;

typedef struct skv_project_add_args {
  /** (rows, weight.rows) */
  float *hidden;
  /** (rows, weight.columns) */
  const float *input;
  /** (weight.rows), or null */
  const float *bias;
  skv_matrix weight;
  skv_step step;
} skv_project_add_args;

typedef struct skv_gate_up_args {
  /** (rows, ffn) */
  float *output;
  /** (rows, hidden) */
  const float *hidden;
  /** (hidden) */
  const float *norm;
  /** (2 ffn), or null */
  const float *bias;
  skv_matrix weight;
  skv_step step;
  skv_sizes sizes;
} skv_gate_up_args;

typedef struct skv_lm_head_args {
  /** (rows, vocabulary), or (1, vocabulary) where last_row is set */
  float *logits;
  /** (rows, hidden) */
  const float *hidden;
  /** (hidden) */
  const float *norm;
  skv_matrix weight;
  skv_step step;
  skv_sizes sizes;
  /** Whether only the last live row of a chunk is computed. */
  uint32_t last_row;
  uint32_t reserved;
} skv_lm_head_args;

typedef struct skv_sample_args {
  /** (sequences) */
  uint32_t *next_tokens;
  /** (sequences, ring, 2): id and its log-probability */
  uint32_t *output;
  /** (sequences, ring): ids to take, 0xffffffff where none is forced */
  const uint32_t *forced;
  /** (rows, vocabulary), or (1, vocabulary) in a prefill step */
  const float *logits;
  /** (sequences, 32): see SamplingWord */
  const uint32_t *sampling;
  /** (sequences, ceil(vocabulary / 32)) */
  const uint32_t *seen;
  skv_step step;
  skv_sizes sizes;
  uint32_t ring;
  uint32_t reserved;
} skv_sample_args;

/** What a device is. */
typedef struct skv_device_info {
  uint64_t memory_bytes;
  uint32_t multiprocessors;
  /** 10 times the major version plus the minor one. */
  uint32_t compute_capability;
  /** Version of the CUDA runtime in the library, e.g. 13000. */
  uint32_t runtime_version;
  /** Version that the driver supports. */
  uint32_t driver_version;
  /** UTF-8, ends with 0. */
  uint8_t name[64];
} skv_device_info;

/** Rows of 32-bit floats to store in 16 bits each. */
typedef struct skv_rows {
  /** Elements that lie before the first row. */
  uint64_t offset;
  uint32_t rows;
  uint32_t columns;
  /** Elements from the start of one row to the start of the next. */
  uint64_t pitch;
} skv_rows;

/** Version of the interface that the library was built for. */
SKV_API uint32_t skv_abi_version(void);

/** What caches hold here: see enum skv_cache_type_id. */
SKV_API uint32_t skv_cache_type(void);

/**
 * Copies the sentence that belongs to the last failure, ended by 0, cut to
 * `capacity` bytes. Null stands for failures of skv_open.
 */
SKV_API void skv_last_error(skv_context *context, uint8_t *text,
                            uint64_t capacity);

/** Opens device `index`, and writes the context. */
SKV_API int32_t skv_open(uint32_t index, uint32_t flags, skv_context **context);

/** Waits for the device and frees the context and all its memory. */
SKV_API void skv_close(skv_context *context);

/** Describes the device. */
SKV_API int32_t skv_describe(skv_context *context, skv_device_info *info);

/** Allocates `bytes` zeroed bytes, and writes their address. */
SKV_API int32_t skv_allocate(skv_context *context, uint64_t bytes,
                             uint64_t *address);

/** Frees what skv_allocate gave. */
SKV_API int32_t skv_free(skv_context *context, uint64_t address);

/** Enqueues a write of `bytes` bytes; `data` may be changed afterwards. */
SKV_API int32_t skv_write(skv_context *context, uint64_t address,
                          const uint8_t *data, uint64_t bytes);

/** The same for floats that are stored as SKV_HALF or as SKV_CACHED. */
SKV_API int32_t skv_write_rows(skv_context *context, uint64_t address,
                               const float *data, const skv_rows *rows,
                               uint32_t element);

/**
 * Enqueues the read of `count` elements, words or what caches hold, and writes
 * a ticket for skv_wait. What caches hold arrives as 32-bit floats.
 */
SKV_API int32_t skv_read(skv_context *context, uint64_t address, uint64_t count,
                         uint32_t element, uint32_t *ticket);

/** Waits for a read and copies `bytes` bytes of it. Redeems the ticket. */
SKV_API int32_t skv_wait(skv_context *context, uint32_t ticket, uint8_t *data,
                         uint64_t bytes);

/** Waits for everything that was enqueued. */
SKV_API int32_t skv_synchronize(skv_context *context);

/**
 * Fills rows with normal numbers of a standard deviation, from a seed: weights
 * for measurements, without a file.
 */
SKV_API int32_t skv_fill_normal(skv_context *context, uint64_t address,
                                const skv_rows *rows, float deviation,
                                uint64_t seed);

/**
 * Reads `bytes` bytes of device memory `times` times, and writes how many bytes
 * a second that were: what no kernel can exceed. Waits for the device.
 */
SKV_API int32_t skv_measure_read(skv_context *context, uint64_t bytes,
                                 uint32_t times, double *bytes_per_second);

/** Starts to record a program. */
SKV_API int32_t skv_begin_record(skv_context *context, skv_program **program);

/**
 * The kernels: each adds one call to a program that is being recorded. `size`
 * is that of the struct.
 */
SKV_API int32_t skv_embed(skv_program *program, const skv_embed_args *args,
                          uint64_t size);
SKV_API int32_t skv_qkv_rope_append(skv_program *program,
                                    const skv_qkv_rope_append_args *args,
                                    uint64_t size);
SKV_API int32_t skv_value_norms(skv_program *program,
                                const skv_value_norms_args *args,
                                uint64_t size);
SKV_API int32_t skv_query_statistics(skv_program *program,
                                     const skv_query_statistics_args *args,
                                     uint64_t size);
SKV_API int32_t skv_merge_attend(skv_program *program,
                                 const skv_merge_attend_args *args,
                                 uint64_t size);
SKV_API int32_t skv_prefill_attend(skv_program *program,
                                   const skv_chunk_args *args, uint64_t size);
SKV_API int32_t skv_observe(skv_program *program, const skv_chunk_args *args,
                            uint64_t size);
SKV_API int32_t skv_compress(skv_program *program, const skv_chunk_args *args,
                             uint64_t size);
SKV_API int32_t skv_project_add(skv_program *program,
                                const skv_project_add_args *args,
                                uint64_t size);
SKV_API int32_t skv_gate_up(skv_program *program, const skv_gate_up_args *args,
                            uint64_t size);
SKV_API int32_t skv_lm_head(skv_program *program, const skv_lm_head_args *args,
                            uint64_t size);
SKV_API int32_t skv_sample(skv_program *program, const skv_sample_args *args,
                           uint64_t size);

/**
 * Ends the recording: allocates scratch memory, captures the graph, and writes
 * the bytes that the device holds for it beside the graph.
 */
SKV_API int32_t skv_end_record(skv_program *program, uint64_t *scratch_bytes);

/** Enqueues a program `times` times. */
SKV_API int32_t skv_run(skv_program *program, uint32_t times);

/** Frees a program, recorded to its end or not. */
SKV_API void skv_dispose(skv_program *program);

#ifdef __cplusplus
}
#endif
