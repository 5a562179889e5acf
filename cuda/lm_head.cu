// Final RMS norm and the logits of every id.
//
// Streams the output embedding once, 2 bytes per element, where there are few
// rows: see lib/product.cuh. A prompt needs the logits after its last row
// alone, which is one row. The alternative that lost: all rows of a chunk for
// it.
#include "lib/product.cuh"

namespace {

struct LogitPairs {
  float *logits;
  uint32_t vocabulary;

  __device__ uint32_t output(uint32_t pair, uint32_t end) const {
    return 2 * pair + end;
  }
  static bool has_tiles(uint32_t outputs) { return outputs % 2 == 0; }
  struct Held {
    float *logits;
    uint32_t left;
  };
  __device__ Held hold(uint32_t row, uint32_t pair) const {
    return {logits + static_cast<size_t>(row) * vocabulary + 2 * pair,
            vocabulary - 2 * pair};
  }
  __device__ void finish(const Held &held, float a, float b) const {
    if (vocabulary % 2 == 0) {
      *reinterpret_cast<float2 *>(held.logits) = {a, b};
    } else {
      held.logits[0] = a;
      if (held.left > 1) held.logits[1] = b;
    }
  }
};

Product product_of(const skv_lm_head_args &args) {
  const bool last_row = args.last_row != 0;
  return {args.weight, args.hidden,
          args.norm,   args.sizes.norm_epsilon,
          args.step,   last_row ? 1 : args.step.rows,
          last_row,    true};
}

}  // namespace

Needs lm_head_needs(const skv_lm_head_args &args, uint32_t multiprocessors) {
  return product_needs(product_of(args), multiprocessors);
}

cudaError_t launch_lm_head(const skv_lm_head_args &args, const Launch &launch) {
  const LogitPairs pairs = {args.logits, args.weight.rows};
  return multiply(product_of(args), pairs, Scratch(launch.scratch), launch);
}
