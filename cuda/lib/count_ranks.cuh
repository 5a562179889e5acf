// The second look: ids and weights by coarse ranks, which leave a narrow range
// for the thresholds of top-k and top-p.
#pragma once

#include "find_rank.cuh"

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
  if (!is_left_alone(work, shared.is_last)) return;
  narrow(row, work, plan, shared);
}
