// Clusters: blocks side by side that run at the same time and read each other's
// shared memory.
#pragma once

#include "launch.cuh"

inline cudaLaunchAttribute cluster_attribute(uint32_t blocks) {
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = blocks;
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  return attribute;
}

// How many clusters of `blocks` blocks the device has room for at a time.
template <class Kernel>
inline cudaError_t most_clusters(const Launch &launch, uint32_t blocks,
                                 Kernel kernel, uint32_t threads,
                                 size_t shared_bytes, int &clusters) {
  cudaLaunchAttribute attribute = cluster_attribute(blocks);
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(blocks, launch.multiprocessors);
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.attrs = &attribute;
  config.numAttrs = 1;
  return cudaOccupancyMaxActiveClusters(&clusters, kernel, &config);
}
