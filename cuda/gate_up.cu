// RMS norm, then silu(gate) * up. Gate and up rows of the weight alternate, so
// that both products of an output are in the same place.
//
// Streams the weight once, 2 bytes per element, where there are few rows: see
// lib/product.cuh. The alternative that lost: two products and a kernel that
// joins them, which writes and reads both again.
#include "lib/product.cuh"

namespace {

struct GatePairs {
  float *outputs;
  const float *bias;
  uint32_t ffn;

  __device__ uint32_t output(uint32_t pair, uint32_t end) const {
    return 2 * pair + end;
  }
  static bool has_tiles(uint32_t outputs) { return outputs % 2 == 0; }
  struct Held {
    float *output;
    float gate_bias, up_bias;
  };
  __device__ Held hold(uint32_t row, uint32_t pair) const {
    return {outputs + static_cast<size_t>(row) * ffn + pair,
            bias == nullptr ? 0.0f : bias[2 * pair],
            bias == nullptr ? 0.0f : bias[2 * pair + 1]};
  }
  __device__ static void finish(const Held &held, float gate, float up) {
    gate += held.gate_bias, up += held.up_bias;
    *held.output = gate / (1.0f + expf(-gate)) * up;
  }
};

Product product_of(const skv_gate_up_args &args) {
  return {args.weight, args.hidden,    args.norm, args.sizes.norm_epsilon,
          args.step,   args.step.rows, false};
}

}  // namespace

Needs gate_up_needs(const skv_gate_up_args &args, uint32_t multiprocessors) {
  return product_needs(product_of(args), multiprocessors);
}

cudaError_t launch_gate_up(const skv_gate_up_args &args, const Launch &launch) {
  const GatePairs pairs = {args.output, args.bias, args.sizes.ffn};
  return multiply(product_of(args), pairs, Scratch(launch.scratch), launch);
}
