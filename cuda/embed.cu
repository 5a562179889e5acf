// Looks up the embedding row of each live token and sets its bit among the ids
// that the sequence has seen.
//
// Reads 2 and writes 4 bytes per element of a row, eight elements per thread.
// The alternative that lost: doing it at the start of the first
// qkv_rope_append, whose blocks would each repeat it.
#include "lib/half.cuh"
#include "lib/overlap.cuh"
#include "lib/step.cuh"
#include "runtime/launch.cuh"

namespace {

constexpr uint32_t kThreads = 128;

// Elements of a thread.
constexpr uint32_t kElements = 8;

__global__ void __launch_bounds__(kThreads) embed_kernel(skv_embed_args args) {
  begin_kernel();
  const Row row = row_of(args.step, blockIdx.y);
  if (!row.forwarded) return;
  const uint32_t id = args.step.tokens[blockIdx.y];
  if (id >= args.embedding.rows) return;
  const uint32_t width = args.sizes.hidden;
  const uint32_t first = (blockIdx.x * kThreads + threadIdx.x) * kElements;
  if (first < width) {
    // Rows of matrices are aligned, and zero beyond their end.
    const uint4 halves =
        load_weights(args.embedding.data +
                     static_cast<size_t>(id) * args.embedding.pitch + first);
    const uint32_t pairs[kElements / 2] = {halves.x, halves.y, halves.z,
                                           halves.w};
    float *to = args.hidden + static_cast<size_t>(blockIdx.y) * width + first;
    float x[kElements];
#pragma unroll
    for (uint32_t i = 0; i < kElements; i += 2) {
      const float2 pair = to_floats(pairs[i / 2]);
      x[i] = pair.x, x[i + 1] = pair.y;
    }
    if (width % kElements == 0) {
      float4 *words = reinterpret_cast<float4 *>(to);
      words[0] = {x[0], x[1], x[2], x[3]};
      words[1] = {x[4], x[5], x[6], x[7]};
    } else {
#pragma unroll
      for (uint32_t i = 0; i < kElements; i++) {
        if (first + i < width) to[i] = x[i];
      }
    }
  }
  if (first == 0 && row.live) {
    const uint32_t words = (args.sizes.vocabulary + 31) / 32;
    atomicOr(args.seen + static_cast<size_t>(row.sequence) * words + id / 32,
             1u << id % 32);
  }
}

}  // namespace

Needs embed_needs(const skv_embed_args &, uint32_t) { return {}; }

cudaError_t launch_embed(const skv_embed_args &args, const Launch &launch) {
  const uint32_t per_block = kThreads * kElements;
  const dim3 grid((args.sizes.hidden + per_block - 1) / per_block,
                  args.step.rows);
  return launch_kernel(launch, embed_kernel, grid, kThreads, 0, args);
}
