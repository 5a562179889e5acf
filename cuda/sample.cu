// Repetition penalty, temperature, top-k, top-p, min-p and one draw, or the
// most likely id where the temperature is 0. Writes the id to the output ring
// and moves the sequence on.
//
// Three kernels, each of which reads the logits once, 4 bytes per id, with many
// blocks per sequence; the last block of a sequence to finish adds up what the
// others found. The first finds the most likely id and the softmax sum, and
// ends the step where nothing is drawn. The second counts ids and weights by
// coarse ranks, which leaves a narrow range for the thresholds. The third lists
// the ids of that range; its last block finds the thresholds among them, and
// then the block of ids, and the id, that the draw falls on.
//
// Weights are summed as whole numbers, so a draw is the same from run to run.
// The alternatives that lost: one block that reads the logits once per digit of
// a threshold, 85 µs for 128 thousand ids on an H200; sorting the logits.
#include "lib/find_rank.cuh"
#include "runtime/launch.cuh"

namespace {

// Calls `use(id)` for this thread's ids of the block.
template <class Use>
__device__ inline void for_each_id(const SampleRow &row, const SampleWork &work,
                                   Use use) {
  const uint32_t end = min(row.vocabulary, (blockIdx.x + 1) * work.slice);
#pragma unroll 2
  for (uint32_t id = blockIdx.x * work.slice + threadIdx.x; id < end;
       id += kSampleThreads) {
    use(id);
  }
}

// The better of two parts, and the softmax state of both.
__device__ inline void add_part(SamplePart &sum, const SamplePart &part) {
  const SoftmaxState state =
      merge_softmax({sum.max, sum.sum}, {part.max, part.sum});
  sum.max = state.max;
  sum.sum = state.sum;
  if (part.key >= sum.key) return;
  sum.key = part.key;
  sum.raw = part.raw;
  sum.changed = part.changed;
}

// The part of all lanes, in the first lane.
__device__ inline SamplePart part_of_lanes(SamplePart mine) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    SamplePart other;
    other.key = __shfl_down_sync(
        kAllLanes, static_cast<unsigned long long>(mine.key), offset);
    other.raw = __shfl_down_sync(kAllLanes, mine.raw, offset);
    other.changed = __shfl_down_sync(kAllLanes, mine.changed, offset);
    other.max = __shfl_down_sync(kAllLanes, mine.max, offset);
    other.sum = __shfl_down_sync(kAllLanes, mine.sum, offset);
    add_part(mine, other);
  }
  return mine;
}

__device__ inline SamplePart no_part() {
  return {kNoKey, 0.0f, 0.0f, -INFINITY, 0.0f};
}

// What is left to do once the most likely id is known.
__device__ inline SamplePlan plan_of(const SampleRow &row,
                                     const SamplePart &all) {
  SamplePlan plan = {};
  plan.best = static_cast<uint32_t>(all.key);
  plan.max = all.changed;
  plan.log_sum = log_sum({all.max, all.sum});
  plan.draws = 1;
  plan.filters = row.has_top_k() || row.has_top_p();
  plan.begin = plan.end = static_cast<uint64_t>(row.least_rank()) + 1;
  return plan;
}

// The most likely id, ties to the lowest, and the softmax sum of all.
__global__ void __launch_bounds__(kSampleThreads)
    survey_kernel(skv_sample_args args, SampleWork work) {
  __shared__ SamplePart warps[kSampleWarps];
  let_next_start();
  const SampleRow row(args);
  if (!row.live) {
    wait_for_previous();
    if (blockIdx.x == 0 && threadIdx.x == 0) work.plans[blockIdx.y].draws = 0;
    return;
  }
  const Output output(args, row);
  const float temperature = row.option(kTemperature);
  const bool is_forced = output.forced < row.vocabulary;
  const bool draws = !is_forced && temperature != 0.0f;
  wait_for_previous();
  SamplePart mine = no_part();
  for_each_id(row, work, [&](uint32_t id) {
    const float raw = row.raw[id];
    const float logit = row.changed(id, raw);
    add_part(mine, {order_key(-logit, id), raw, logit, raw,
                    raw == -INFINITY ? 0.0f : 1.0f});
  });
  if (draws) {
    if (blockIdx.x == 0 && threadIdx.x == 0) work.listed[blockIdx.y] = 0;
    const size_t first = static_cast<size_t>(blockIdx.y) * kBuckets;
    for (uint32_t i = blockIdx.x * kSampleThreads + threadIdx.x; i < kBuckets;
         i += gridDim.x * kSampleThreads) {
      work.counts[first + i] = 0;
      work.weights[first + i] = 0;
    }
  }
  mine = part_of_lanes(mine);
  if (lane_id() == 0) warps[warp_id()] = mine;
  __syncthreads();
  if (warp_id() != 0) return;
  mine = part_of_lanes(lane_id() < kSampleWarps ? warps[lane_id()] : no_part());
  SamplePart *parts =
      work.parts + static_cast<size_t>(blockIdx.y) * work.blocks;
  bool last = work.blocks == 1;
  if (!last) {
    if (lane_id() == 0) {
      parts[blockIdx.x] = mine;
      __threadfence();
      last = is_last_block(work);
    }
    last = __shfl_sync(kAllLanes, last ? 1 : 0, 0) != 0;
    if (!last) return;
    __threadfence();
    mine = no_part();
    for (uint32_t b = lane_id(); b < work.blocks; b += 32) {
      SamplePart part;
      const auto *from = reinterpret_cast<const uint2 *>(parts + b);
      const uint2 key = __ldcg(from), logits = __ldcg(from + 1),
                  state = __ldcg(from + 2);
      part.key = static_cast<uint64_t>(key.y) << 32 | key.x;
      part.raw = __uint_as_float(logits.x);
      part.changed = __uint_as_float(logits.y);
      part.max = __uint_as_float(state.x);
      part.sum = __uint_as_float(state.y);
      add_part(mine, part);
    }
    mine = part_of_lanes(mine);
  }
  if (lane_id() != 0) return;
  SamplePlan plan = plan_of(row, mine);
  plan.draws = draws;
  work.plans[blockIdx.y] = plan;
  if (draws) return;
  const float raw = is_forced ? row.raw[output.forced] : mine.raw;
  finish_row(args, row, output, is_forced ? output.forced : plan.best,
             raw - plan.log_sum);
}

struct CountShared {
  uint32_t counts[kBuckets];
  Histogram<kBuckets> weights;
  uint64_t sums[kSampleWarps];
  // Where thresholds lie, and the sums before them.
  uint32_t top_k;
  uint32_t low, high;
  uint64_t least, most;
  bool is_last;
};

// Buckets of a thread when all are gone through.
constexpr uint32_t kOwnBuckets = kBuckets / kSampleThreads;

// What the weights of the likeliest ids have to add up to, of a sum.
__device__ inline uint64_t wanted_of(const SampleRow &row, uint64_t mass) {
  const double share = ceil(row.option(kTopP) * static_cast<double>(mass));
  return max(static_cast<uint64_t>(share), static_cast<uint64_t>(1));
}

// Narrows the thresholds down. Called by the whole block.
__device__ inline void narrow(const SampleRow &row, const SampleWork &work,
                              SamplePlan *plan, CountShared &shared) {
  const size_t first =
      static_cast<size_t>(blockIdx.y) * kBuckets + threadIdx.x * kOwnBuckets;
  uint64_t counts[kOwnBuckets], weights[kOwnBuckets];
  uint64_t count = 0, weight = 0, all_counts, all_weights;
#pragma unroll
  for (uint32_t i = 0; i < kOwnBuckets; i++) {
    counts[i] = __ldcg(work.counts + first + i);
    weights[i] = __ldcg(work.weights + first + i);
    count += counts[i];
    weight += weights[i];
  }
  count = sum_before(count, all_counts, shared.sums);
  weight = sum_before(weight, all_weights, shared.sums);
  // Calls `use(bucket, count, weight)` for the buckets in which a sum reaches
  // `wanted`, with the sums before.
  const auto find = [&](const uint64_t(&own)[kOwnBuckets], uint64_t before,
                        uint64_t wanted, auto use) {
    uint64_t c = count, w = weight;
#pragma unroll
    for (uint32_t i = 0; i < kOwnBuckets; i++) {
      if (before < wanted && wanted <= before + own[i]) {
        use(threadIdx.x * kOwnBuckets + i, c, w, weights[i]);
      }
      before += own[i];
      c += counts[i];
      w += weights[i];
    }
  };
  if (threadIdx.x == 0) {
    shared.top_k = kBuckets - 1;
    shared.least = shared.most = all_weights;
  }
  __syncthreads();
  if (row.has_top_k()) {
    find(counts, count, row.options[kTopK],
         [&](uint32_t bucket, uint64_t, uint64_t before, uint64_t own) {
           shared.top_k = bucket;
           shared.least = before;
           shared.most = before + own;
         });
    __syncthreads();
  }
  if (threadIdx.x == 0) shared.low = shared.high = shared.top_k;
  __syncthreads();
  if (row.has_top_p()) {
    find(weights, weight, wanted_of(row, shared.least),
         [&](uint32_t bucket, uint64_t, uint64_t, uint64_t) {
           shared.low = min(bucket, shared.top_k);
         });
    if (!row.has_top_k()) {
      __syncthreads();
      if (threadIdx.x == 0) shared.high = shared.low;
    }
    __syncthreads();
  }
  const uint32_t low = shared.low;
  const uint32_t least_rank = row.least_rank();
  // What is too unlikely beside the likeliest may be all that counts.
  if (least_rank < first_of_bucket(low)) return;
  if (threadIdx.x != low / kOwnBuckets) return;
  for (uint32_t i = 0; i < low % kOwnBuckets; i++) {
    count += counts[i];
    weight += weights[i];
  }
  plan->begin = first_of_bucket(low);
  plan->end = first_of_bucket(shared.high + 1);
  plan->count_before = static_cast<uint32_t>(count);
  plan->weight_before = weight;
  plan->weight = all_weights;
}

// Counts ids and their weights by coarse ranks.
__global__ void __launch_bounds__(kSampleThreads)
    count_kernel(skv_sample_args args, SampleWork work) {
  __shared__ CountShared shared;
  begin_kernel();
  SamplePlan *plan = work.plans + blockIdx.y;
  if (plan->draws == 0 || plan->filters == 0) return;
  const SampleRow row(args);
  const ScaledLogits scaled = {row, plan->max, row.option(kTemperature)};
  shared.weights.clear();
  for (uint32_t i = threadIdx.x; i < kBuckets; i += kSampleThreads) {
    shared.counts[i] = 0;
  }
  __syncthreads();
  const bool weighs = row.has_top_p();
  for_each_id(row, work, [&](uint32_t id) {
    const float l = scaled(id);
    const uint32_t bucket = rank_of(l) >> kBucketShift;
    atomicAdd(shared.counts + bucket, 1);
    if (weighs) shared.weights.add(bucket, weight_of(l));
  });
  __syncthreads();
  const size_t first = static_cast<size_t>(blockIdx.y) * kBuckets;
  for (uint32_t i = threadIdx.x; i < kBuckets; i += kSampleThreads) {
    if (shared.counts[i] == 0) continue;
    atomicAdd(work.counts + first + i, shared.counts[i]);
    if (!weighs) continue;
    atomicAdd(reinterpret_cast<unsigned long long *>(work.weights + first + i),
              static_cast<unsigned long long>(shared.weights.get(i)));
  }
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) shared.is_last = is_last_block(work);
  __syncthreads();
  if (!shared.is_last) return;
  __threadfence();
  narrow(row, work, plan, shared);
}

// Blocks of a row are at most the threads of one.
constexpr uint32_t kMostBlocks = kSampleThreads;

struct DrawShared {
  RankScratch ranks;
  BlockScratch prefix;
  unsigned long long slices[kMostBlocks];
  uint32_t first_listed;
  uint32_t slice;
  uint64_t left;
  bool is_last;
};

// The last rank that takes part. Called by the whole block; `for_each(use)`
// calls `use(rank, weight)` for this thread's share of the listed ids.
template <class ForEach>
__device__ inline uint32_t last_rank(const SampleRow &row,
                                     const SamplePlan &plan,
                                     RankScratch &shared, ForEach for_each) {
  if (plan.begin == plan.end) return static_cast<uint32_t>(plan.begin - 1);
  // Highest bits that all listed ranks share.
  const uint32_t low = static_cast<uint32_t>(plan.begin);
  const uint32_t high = static_cast<uint32_t>(plan.end - 1);
  const uint32_t mask = (low ^ high) >> 24 == 0 ? 0xff000000u : 0;
  uint32_t last = 0xffffffffu;
  if (row.has_top_k()) {
    last = find_rank(row.options[kTopK] - plan.count_before, low & mask, mask,
                     shared, [&](auto use) {
                       for_each([&](uint32_t rank, uint64_t) { use(rank, 1); });
                     });
  }
  if (row.has_top_p()) {
    uint64_t mass = plan.weight;
    if (row.has_top_k()) {
      uint64_t mine = 0, listed;
      for_each([&](uint32_t rank, uint64_t weight) {
        if (rank <= last) mine += weight;
      });
      sum_before(mine, listed, shared.sums);
      mass = plan.weight_before + listed;
    }
    const uint64_t wanted = wanted_of(row, mass);
    last = find_rank(wanted - plan.weight_before, low & mask, mask, shared,
                     [&](auto use) {
                       for_each([&](uint32_t rank, uint64_t weight) {
                         if (rank <= last) use(rank, weight);
                       });
                     });
  }
  return min(last, row.least_rank());
}

// Draws. Called by the last block of a row.
__device__ inline void draw(const skv_sample_args &args, const SampleRow &row,
                            const ScaledLogits &scaled, const SampleWork &work,
                            const SamplePlan &plan, DrawShared &shared) {
  const uint32_t *list =
      work.list + static_cast<size_t>(blockIdx.y) * kMostListed;
  const uint32_t listed = __ldcg(work.listed + blockIdx.y);
  const bool fits = listed <= kMostListed;
  const uint32_t count = fits ? listed : row.vocabulary;
  const auto for_each_listed = [&](auto use) {
    for (uint32_t i = threadIdx.x; i < count; i += kSampleThreads) {
      const uint32_t id = fits ? __ldcg(list + i) : i;
      const float l = scaled(id);
      const uint32_t rank = rank_of(l);
      if (rank < plan.begin || rank >= plan.end) continue;
      use(id, rank, weight_of(l));
    }
  };
  const uint32_t last = last_rank(row, plan, shared.ranks, [&](auto use) {
    for_each_listed(
        [&](uint32_t, uint32_t rank, uint64_t weight) { use(rank, weight); });
  });
  // Sums of the ids of each block, now that it is known who takes part.
  const size_t first = static_cast<size_t>(blockIdx.y) * work.blocks;
  if (threadIdx.x < kMostBlocks) {
    shared.slices[threadIdx.x] =
        threadIdx.x < work.blocks ? __ldcg(work.sums + first + threadIdx.x) : 0;
  }
  if (threadIdx.x == 0) {
    shared.slice = kMostBlocks;
    shared.ranks.chosen = plan.best;
  }
  __syncthreads();
  for_each_listed([&](uint32_t id, uint32_t rank, uint64_t weight) {
    if (rank > last) return;
    atomicAdd(shared.slices + id / work.slice,
              static_cast<unsigned long long>(weight));
  });
  __syncthreads();
  uint32_t *state = args.step.state + row.sequence * kStateWords;
  const Output output(args, row);
  uint64_t total;
  const uint64_t own = shared.slices[threadIdx.x];
  const uint64_t before = sum_before(own, total, shared.ranks.sums);
  const uint64_t left =
      __umul64hi(total << 8, static_cast<uint64_t>(random_bits(state)) << 32);
  if (left >= before && left < before + own) {
    shared.slice = threadIdx.x;
    shared.left = left - before;
  }
  __syncthreads();
  // Where none has a weight, because logits are not numbers, it is the best.
  uint32_t id = plan.best;
  if (shared.slice != kMostBlocks) {
    const uint32_t begin = shared.slice * work.slice;
    id = find_id(begin, min(row.vocabulary, begin + work.slice), shared.left,
                 shared.ranks, [&](uint32_t at) -> uint64_t {
                   const float l = scaled(at);
                   return rank_of(l) <= last ? weight_of(l) : 0;
                 });
  }
  if (threadIdx.x != 0) return;
  finish_row(args, row, output, id, row.raw[id] - plan.log_sum);
}

// Sums the ids that take part for certain, and lists those that may.
__global__ void __launch_bounds__(kSampleThreads)
    draw_kernel(skv_sample_args args, SampleWork work) {
  __shared__ DrawShared shared;
  begin_kernel();
  const SamplePlan plan = work.plans[blockIdx.y];
  if (plan.draws == 0) return;
  const SampleRow row(args);
  const ScaledLogits scaled = {row, plan.max, row.option(kTemperature)};
  uint64_t mine = 0, sum;
  uint32_t may = 0, listed;
  for_each_id(row, work, [&](uint32_t id) {
    const float l = scaled(id);
    const uint32_t rank = rank_of(l);
    if (rank < plan.begin) {
      mine += weight_of(l);
    } else if (rank < plan.end) {
      may++;
    }
  });
  sum_before(mine, sum, shared.ranks.sums);
  uint32_t at = block_prefix(may, listed, shared.prefix);
  if (listed > 0) {
    if (threadIdx.x == 0) {
      shared.first_listed = atomicAdd(work.listed + blockIdx.y, listed);
    }
    __syncthreads();
    at += shared.first_listed;
    uint32_t *list = work.list + static_cast<size_t>(blockIdx.y) * kMostListed;
    for_each_id(row, work, [&](uint32_t id) {
      const uint32_t rank = rank_of(scaled(id));
      if (rank < plan.begin || rank >= plan.end) return;
      if (at < kMostListed) list[at] = id;
      at++;
    });
  }
  if (threadIdx.x == 0) {
    work.sums[static_cast<size_t>(blockIdx.y) * work.blocks + blockIdx.x] = sum;
  }
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) shared.is_last = is_last_block(work);
  __syncthreads();
  if (!shared.is_last) return;
  __threadfence();
  draw(args, row, scaled, work, plan, shared);
}

// Ids that are worth a block.
constexpr uint32_t kLeastIds = 1024;

uint32_t rows_of(const skv_sample_args &args) {
  return args.step.kind == SKV_PREFILL ? 1 : args.step.rows;
}

SampleWork take_work(const skv_sample_args &args, uint32_t multiprocessors,
                     Scratch *scratch) {
  const uint32_t vocabulary = args.sizes.vocabulary;
  const size_t rows = rows_of(args);
  SampleWork work = {};
  const uint32_t wanted = 4 * multiprocessors / rows_of(args);
  const uint32_t most = (vocabulary + kLeastIds - 1) / kLeastIds;
  work.blocks = max(1u, min(min(wanted, most), kMostBlocks));
  work.slice = (vocabulary + work.blocks - 1) / work.blocks;
  work.plans = scratch->take<SamplePlan>(rows);
  work.parts = scratch->take<SamplePart>(rows * work.blocks);
  work.counts = scratch->take<uint32_t>(rows * kBuckets);
  work.weights = scratch->take<uint64_t>(rows * kBuckets);
  work.sums = scratch->take<uint64_t>(rows * work.blocks);
  work.listed = scratch->take<uint32_t>(rows);
  work.list = scratch->take<uint32_t>(rows * kMostListed);
  return work;
}

}  // namespace

Needs sample_needs(const skv_sample_args &args, uint32_t multiprocessors) {
  Scratch scratch(nullptr);
  take_work(args, multiprocessors, &scratch);
  Needs needs;
  needs.scratch = scratch.taken(nullptr);
  needs.tickets = rows_of(args);
  return needs;
}

cudaError_t launch_sample(const skv_sample_args &args, const Launch &launch) {
  Scratch scratch(launch.scratch);
  SampleWork work = take_work(args, launch.multiprocessors, &scratch);
  work.tickets = launch.tickets;
  const dim3 grid(work.blocks, rows_of(args));
  cudaError_t status =
      launch_kernel(launch, survey_kernel, grid, kSampleThreads, 0, args, work);
  if (status != cudaSuccess) return status;
  status =
      launch_kernel(launch, count_kernel, grid, kSampleThreads, 0, args, work);
  if (status != cudaSuccess) return status;
  return launch_kernel(launch, draw_kernel, grid, kSampleThreads, 0, args,
                       work);
}
