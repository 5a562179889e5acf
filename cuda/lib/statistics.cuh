// Where the statistics of query heads are: see queryStatisticsLayout in
// src/backends/backend.ts.
#pragma once

#include <stdint.h>

#include "../steadykv.h"

// The statistics of one query head.
struct QueryStatistics {
  float *own;
  uint32_t head_dim;

  // Mean of the unrotated queries, and how far they scatter, per RoPE pair.
  __device__ float *mean() const { return own; }
  __device__ float *scatter() const { return own + head_dim; }
  // Mean of the queries that are expected, and their variance, per RoPE pair.
  __device__ float *future() const { return own + head_dim / 2 * 3; }
  __device__ float *variance() const { return own + head_dim / 2 * 5; }
  // Queries that were counted.
  __device__ float *count() const { return own + head_dim * 3; }
};

__device__ inline QueryStatistics statistics_of(const skv_cache &cache,
                                                const skv_sizes &sizes,
                                                uint32_t sequence,
                                                uint32_t head) {
  const size_t index = static_cast<size_t>(sequence) * sizes.heads + head;
  return {cache.statistics + index * (3 * sizes.head_dim + 1), sizes.head_dim};
}
