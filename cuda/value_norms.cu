// The norm of each value that qkv_rope_append has just written: the mean over
// the query heads of the group of ‖v · W_O[h]‖₁, W_O[h] being the head's
// columns of the output projection; or ‖v‖₂.
//
// Streams the projection once per tile of 16 rows, 2 bytes per element, from
// memory to the registers of the tensor cores: columns are dealt to the lanes
// as they come, which a dot product does not notice. A block leaves a sum of
// absolute products per row; `collect` adds them up in a fixed order. The
// alternative that lost: the Gram matrix of each head's projection, which takes
// fewer products but gives the L2 norm, and memory in each layer.
//
// The projection is halves. Where caches hold something else, a block turns its
// values into halves, scaled.
#include "lib/overlap.cuh"
#include "lib/row_tiles.cuh"
#include "lib/slots.cuh"
#include "lib/step.cuh"
#include "runtime/launch.cuh"

namespace {

constexpr uint32_t kWarps = 8;
constexpr uint32_t kThreads = 32 * kWarps;
constexpr uint32_t kTileRows = 16;
// Outputs of a block: eight per warp at a time.
constexpr uint32_t kTileOutputs = 256;

// The slot that a row's value was written to; false if there is none.
__device__ inline bool appended_slot(const skv_value_norms_args &args,
                                     uint32_t index, uint32_t kv_head,
                                     Slot &out) {
  const skv_cache &cache = args.cache;
  const Row row = row_of(args.step, index);
  if (!row.live) return false;
  if (args.step.kind == SKV_PREFILL) {
    out = slot_at(cache.stage, kv_head * cache.stage_rows + index,
                  args.sizes.head_dim);
    return true;
  }
  const uint32_t *head = head_words(cache, args.sizes, row.sequence, kv_head);
  if (head[kHeadNext] >= head[kHeadCapacity]) return false;
  out = slot_at(cache.slots, head[kHeadOffset] + head[kHeadNext],
                args.sizes.head_dim);
  return true;
}

// Turns what a lane and the three next to it have of a value into halves,
// scaled by a power of two: what is within 2^-31 of the largest element stays
// exact. Returns what products must be multiplied by.
template <int COUNT>
__device__ inline float scale_to_halves(uint32_t (&pairs)[COUNT][4]) {
  if constexpr (kCachesHalves) return 1.0f;
  float largest = 0.0f;
#pragma unroll
  for (int i = 0; i < 4 * COUNT; i++) {
    const float2 x = cached_floats(pairs[i / 4][i % 4]);
    largest = fmaxf(largest, fmaxf(fabsf(x.x), fabsf(x.y)));
  }
  largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, 1));
  largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, 2));
  const Scale scale = scale_for(largest);
#pragma unroll
  for (int i = 0; i < 4 * COUNT; i++) {
    uint32_t &pair = pairs[i / 4][i % 4];
    const float2 x = cached_floats(pair);
    pair = to_halves(x.x * scale.scale, x.y * scale.scale);
  }
  return scale.inverse;
}

// Sums of absolute products of a tile of rows with a tile of outputs of a query
// head: (rows, heads, parts).
template <int DIM, bool ALIGNED>
__global__ void __launch_bounds__(kThreads)
    project_kernel(skv_value_norms_args args, float *partials) {
  __shared__ float shared[kWarps][kTileRows];
  begin_kernel();
  const skv_sizes &sizes = args.sizes;
  const uint32_t head = blockIdx.y, head_dim = sizes.head_dim;
  const uint32_t kv_head = head / (sizes.heads / sizes.kv_heads);
  const uint32_t first_row = blockIdx.z * kTileRows;
  if (first_row >= row_end(args.step)) return;
  const uint32_t g = lane_id() / 4, t = lane_id() % 4;
  // Words of rows g and g + 8: see `a` of mma().
  uint32_t values[2][DIM / 32][4] = {};
#pragma unroll
  for (int h = 0; h < 2; h++) {
    Slot slot;
    if (!appended_slot(args, first_row + g + 8 * h, kv_head, slot)) continue;
#pragma unroll
    for (int c = 0; c < DIM / 32; c++) {
      load_pairs<8, ALIGNED>(values[h][c], slot.value, 32 * c + 8 * t,
                             head_dim);
    }
  }
  const float inverse[2] = {scale_to_halves(values[0]),
                            scale_to_halves(values[1])};
  const uint32_t outputs = args.weight.rows;
  const uint32_t begin = blockIdx.x * kTileOutputs;
  const uint32_t end = min(outputs, begin + kTileOutputs);
  float sums[2] = {};
  for (uint32_t first = begin + 8 * warp_id(); first < end;
       first += 8 * kWarps) {
    const uint32_t output = min(first + g, outputs - 1);
    const skv_half *row = args.weight.data +
                          static_cast<size_t>(output) * args.weight.pitch +
                          head * head_dim;
    float products[4] = {};
#pragma unroll
    for (int c = 0; c < DIM / 32; c++) {
      uint32_t w[4];
      load_pairs<8, ALIGNED>(w, row, 32 * c + 8 * t, head_dim);
#pragma unroll
      for (int s = 0; s < 2; s++) {
        const uint4 a = {values[0][c][2 * s], values[1][c][2 * s],
                         values[0][c][2 * s + 1], values[1][c][2 * s + 1]};
        mma(products, a, w[2 * s], w[2 * s + 1]);
      }
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
      if (first + 2 * t + i % 2 < end) sums[i / 2] += fabsf(products[i]);
    }
  }
#pragma unroll
  for (int h = 0; h < 2; h++) {
    sums[h] += __shfl_xor_sync(kAllLanes, sums[h], 1);
    sums[h] += __shfl_xor_sync(kAllLanes, sums[h], 2);
    if (t == 0) shared[warp_id()][g + 8 * h] = sums[h] * inverse[h];
  }
  __syncthreads();
  const uint32_t row = first_row + threadIdx.x;
  if (threadIdx.x >= kTileRows || row >= args.step.rows) return;
  float sum = 0.0f;
  for (uint32_t w = 0; w < kWarps; w++) sum += shared[w][threadIdx.x];
  const size_t query = static_cast<size_t>(row) * sizes.heads + head;
  partials[query * gridDim.x + blockIdx.x] = sum;
}

// Writes the norm of one value; one warp.
__global__ void __launch_bounds__(32)
    collect_kernel(skv_value_norms_args args, const float *partials,
                   uint32_t parts) {
  begin_kernel();
  const skv_sizes &sizes = args.sizes;
  const uint32_t kv_head = blockIdx.x, row = blockIdx.y;
  Slot slot;
  if (!appended_slot(args, row, kv_head, slot)) return;
  const uint32_t group = sizes.heads / sizes.kv_heads;
  float sum = 0.0f;
  if (partials != nullptr) {
    const float *own =
        partials +
        (static_cast<size_t>(row) * sizes.heads + kv_head * group) * parts;
    for (uint32_t i = lane_id(); i < group * parts; i += 32) sum += own[i];
  } else {
    for (uint32_t d = lane_id(); d < sizes.head_dim; d += 32) {
      const float x = to_float(slot.value[d]);
      sum += x * x;
    }
  }
  sum = warp_sum(sum);
  if (lane_id() != 0) return;
  slot.set(kSlotValueNorm,
           partials == nullptr ? sqrtf(sum) : sum / static_cast<float>(group));
}

bool projects(const skv_value_norms_args &args) {
  return args.weight.data != nullptr;
}

uint32_t parts_of(const skv_value_norms_args &args) {
  return (args.weight.rows + kTileOutputs - 1) / kTileOutputs;
}

template <int DIM>
cudaError_t launch_width(const skv_value_norms_args &args, float *partials,
                         const Launch &launch) {
  const dim3 grid(parts_of(args), args.sizes.heads,
                  (args.step.rows + kTileRows - 1) / kTileRows);
  const auto kernel = args.sizes.head_dim % 8 == 0 ? project_kernel<DIM, true>
                                                   : project_kernel<DIM, false>;
  return launch_kernel(launch, kernel, grid, kThreads, 0, args, partials);
}

cudaError_t launch_project(const skv_value_norms_args &args, float *partials,
                           const Launch &launch) {
  return with_width(args.sizes.head_dim, [&](auto width) {
    return launch_width<decltype(width)::value>(args, partials, launch);
  });
}

}  // namespace

Needs value_norms_needs(const skv_value_norms_args &args, uint32_t) {
  if (!projects(args)) return {};
  return {static_cast<size_t>(args.step.rows) * args.sizes.heads *
          parts_of(args) * sizeof(float)};
}

cudaError_t launch_value_norms(const skv_value_norms_args &args,
                               const Launch &launch) {
  float *partials = nullptr;
  if (projects(args)) {
    partials = reinterpret_cast<float *>(launch.scratch);
    const cudaError_t status = launch_project(args, partials, launch);
    if (status != cudaSuccess) return status;
  }
  const dim3 grid(args.sizes.kv_heads, args.step.rows);
  return launch_kernel(launch, collect_kernel, grid, 32, 0, args,
                       static_cast<const float *>(partials),
                       projects(args) ? parts_of(args) : 0u);
}
