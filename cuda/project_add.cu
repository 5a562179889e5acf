// hidden += input · weightᵀ + bias.
//
// Streams the weight once, 2 bytes per element, where there are few rows: see
// lib/product.cuh. Each output is added by one thread, so that results are the
// same from run to run. The alternative that lost: splitting the columns over
// blocks that add atomically.
#include "lib/product.cuh"

namespace {

struct AddPairs {
  float *hidden;
  const float *bias;
  uint32_t width;

  __device__ uint32_t output(uint32_t pair, uint32_t end) const {
    return 2 * pair + end;
  }
  __device__ void finish(uint32_t row, uint32_t pair, float a, float b) const {
    const uint32_t i = 2 * pair;
    const bool is_pair = i + 1 < width;
    if (bias != nullptr) {
      a += bias[i];
      if (is_pair) b += bias[i + 1];
    }
    float *to = hidden + static_cast<size_t>(row) * width + i;
    if (width % 2 == 0) {
      float2 *both = reinterpret_cast<float2 *>(to);
      const float2 before = *both;
      *both = {before.x + a, before.y + b};
    } else {
      to[0] += a;
      if (is_pair) to[1] += b;
    }
  }
};

Product product_of(const skv_project_add_args &args) {
  return {args.weight, args.input,     nullptr, 0.0f,
          args.step,   args.step.rows, false};
}

}  // namespace

Needs project_add_needs(const skv_project_add_args &args,
                        uint32_t multiprocessors) {
  return product_needs(product_of(args), multiprocessors);
}

cudaError_t launch_project_add(const skv_project_add_args &args,
                               const Launch &launch) {
  const AddPairs pairs = {args.hidden, args.bias, args.weight.rows};
  return multiply(product_of(args), pairs, Scratch(launch.scratch), launch);
}
