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
  static bool has_tiles(uint32_t outputs) { return outputs % 2 == 0; }
  struct Held {
    float *hidden;
    float bias[2];
    bool is_pair;
  };
  __device__ Held hold(uint32_t row, uint32_t pair) const {
    const uint32_t i = 2 * pair;
    Held held = {
        hidden + static_cast<size_t>(row) * width + i, {}, i + 1 < width};
    if (bias != nullptr) {
      held.bias[0] = bias[i];
      if (held.is_pair) held.bias[1] = bias[i + 1];
    }
    return held;
  }
  // Nobody waits for an addition whose result is not asked for.
  __device__ static void finish(const Held &held, float a, float b) {
    atomicAdd(held.hidden, a + held.bias[0]);
    if (held.is_pair) atomicAdd(held.hidden + 1, b + held.bias[1]);
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
