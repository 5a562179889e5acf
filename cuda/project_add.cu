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
  __device__ void add(uint32_t row, uint32_t i, float x) const {
    if (i >= width) return;
    hidden[static_cast<size_t>(row) * width + i] +=
        x + (bias == nullptr ? 0.0f : bias[i]);
  }
  __device__ void finish(uint32_t row, uint32_t pair, float a, float b) const {
    add(row, output(pair, 0), a);
    add(row, output(pair, 1), b);
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
