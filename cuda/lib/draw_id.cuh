// The third look: the ids of the range in which thresholds lie, the thresholds
// among them, and the id that the draw falls on.
#pragma once

#include "find_rank.cuh"

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
  if (!is_left_alone(work, shared.is_last)) return;
  draw(args, row, scaled, work, plan, shared);
}
