// Looks up the embedding row of each live token and sets its bit among the ids
// that the sequence has seen.
//
// Reads 2 and writes 4 bytes per element of a row; one block per row. The
// alternative that lost: doing it at the start of the first qkv_rope_append,
// whose blocks would each repeat it.
#include "lib/half.cuh"
#include "lib/overlap.cuh"
#include "lib/step.cuh"
#include "runtime/launch.cuh"

namespace {

constexpr uint32_t kThreads = 256;

__global__ void __launch_bounds__(kThreads) embed_kernel(skv_embed_args args) {
  begin_kernel();
  const Row row = row_of(args.step, blockIdx.x);
  if (!row.forwarded) return;
  const uint32_t id = args.step.tokens[blockIdx.x];
  if (id >= args.embedding.rows) return;
  const uint32_t width = args.sizes.hidden;
  const skv_half *from =
      args.embedding.data + static_cast<size_t>(id) * args.embedding.pitch;
  float *to = args.hidden + static_cast<size_t>(blockIdx.x) * width;
  for (uint32_t i = threadIdx.x; i < width; i += kThreads) {
    to[i] = to_float(from[i]);
  }
  if (threadIdx.x == 0 && row.live) {
    const uint32_t words = (args.sizes.vocabulary + 31) / 32;
    atomicOr(args.seen + static_cast<size_t>(row.sequence) * words + id / 32,
             1u << id % 32);
  }
}

}  // namespace

Needs embed_needs(const skv_embed_args &, uint32_t) { return {}; }

cudaError_t launch_embed(const skv_embed_args &args, const Launch &launch) {
  return launch_kernel(launch, embed_kernel, args.step.rows, kThreads, 0, args);
}
