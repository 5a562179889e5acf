// For each query head, the mean of its unrotated queries and, per RoPE pair,
// the mean of their squared distances from it, over the text so far; then the
// mean and the variance of the queries that are expected after the last row,
// rotated like keys.
//
// Reads the queries of the step once, 4 bytes per element, and moves 28 bytes
// per pair and query head of statistics. A block has a query head: its threads
// share the pairs, and the rows of a chunk, whose statistics they join in the
// end. The alternative that lost: counting queries in qkv_rope_append before it
// turns them, whose blocks own rows, not heads.
#include "lib/overlap.cuh"
#include "lib/rope.cuh"
#include "lib/statistics.cuh"
#include "lib/step.cuh"
#include "runtime/launch.cuh"

namespace {

constexpr uint32_t kThreads = 512;

// How many queries there were, their mean, and how far they scatter.
struct Moments {
  float count = 0.0f;
  float scatter = 0.0f;
  float2 mean = {0.0f, 0.0f};

  // Takes others in. Differences from the mean are summed up, not squares,
  // since queries may scatter little about a mean far from 0.
  __device__ void join(const Moments &other) {
    if (other.count == 0.0f) return;
    count += other.count;
    const float share = other.count / count;
    const float2 change = {other.mean.x - mean.x, other.mean.y - mean.y};
    const float between =
        (1.0f - share) * (change.x * change.x + change.y * change.y);
    scatter += share * (other.scatter - scatter + between);
    mean.x += share * change.x;
    mean.y += share * change.y;
  }
};

__global__ void __launch_bounds__(kThreads)
    count_kernel(skv_query_statistics_args args) {
  __shared__ Moments shared[kThreads];
  begin_kernel();
  const skv_sizes &sizes = args.sizes;
  const uint32_t head = blockIdx.x, first = blockIdx.y;
  const bool decodes = args.step.kind == SKV_DECODE;
  const Row first_row = row_of(args.step, first);
  if (!first_row.live) return;
  const uint32_t rows = decodes ? 1 : row_end(args.step);
  const uint32_t half = sizes.head_dim / 2;
  const QueryStatistics own =
      statistics_of(args.cache, sizes, first_row.sequence, head);
  // A thread has a pair and every `parts`th row.
  const uint32_t parts = blockDim.x / half;
  const uint32_t part = threadIdx.x / half, pair = threadIdx.x % half;
  Moments moments;
  for (uint32_t r = part; part < parts && r < rows; r += parts) {
    const uint32_t position = first_row.position + r;
    if (position < args.sinks) continue;
    const float *query =
        args.queries +
        (static_cast<size_t>(first + r) * sizes.heads + head) * sizes.head_dim;
    const float2 angle = rotation(args.rope, half, pair, position);
    // The table may scale what it turns.
    const float square = angle.x * angle.x + angle.y * angle.y;
    const float2 back = {angle.x / square, -angle.y / square};
    Moments one;
    one.count = 1.0f;
    one.mean = turned({query[pair], query[pair + half]}, back);
    moments.join(one);
  }
  shared[threadIdx.x] = moments;
  const float counted = *own.count();
  // Everybody has read the count before one writes it.
  __syncthreads();
  if (part > 0) return;
  moments.count = counted;
  moments.scatter = own.scatter()[pair];
  moments.mean = {own.mean()[pair], own.mean()[pair + half]};
  for (uint32_t p = 0; p < parts; p++) moments.join(shared[p * half + pair]);
  own.mean()[pair] = moments.mean.x;
  own.mean()[pair + half] = moments.mean.y;
  own.scatter()[pair] = moments.scatter;
  if (pair == 0) *own.count() = moments.count;
  const float2 ahead = reinterpret_cast<const float2 *>(args.ahead)[pair];
  const float2 angle = turned(
      rotation(args.rope, half, pair, first_row.position + rows - 1), ahead);
  const float2 future = turned(moments.mean, angle);
  own.future()[pair] = future.x;
  own.future()[pair + half] = future.y;
  own.variance()[pair] =
      (angle.x * angle.x + angle.y * angle.y) * moments.scatter / 2.0f;
}

}  // namespace

Needs query_statistics_needs(const skv_query_statistics_args &, uint32_t) {
  return {};
}

cudaError_t launch_query_statistics(const skv_query_statistics_args &args,
                                    const Launch &launch) {
  // A row of a decode step leaves nothing to share.
  const bool decodes = args.step.kind == SKV_DECODE;
  const dim3 grid(args.sizes.heads, decodes ? args.step.rows : 1);
  const uint32_t half = args.sizes.head_dim / 2;
  const uint32_t threads = decodes ? (half + 31) / 32 * 32 : kThreads;
  return launch_kernel(launch, count_kernel, grid, threads, 0, args);
}
