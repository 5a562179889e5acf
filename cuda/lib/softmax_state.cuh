// Softmax over a stream of logits: running maximum and sum; the weighted value
// is kept by the kernel in whatever layout suits it and scaled alongside. Two
// states over disjoint parts merge into the state over both.
#pragma once

// A state may use any reference instead of the true maximum: what counts is
// max + ln(sum). Attention has its logits in units of ln 2, and a reference
// that is lower than the largest by kHeadroomBits, so that weights reach 2^14
// and those of 2^-24 of the largest still are normal halves.
constexpr float kHeadroomBits = 14.0f;

// ln to log2 and back.
constexpr float kLog2E = 1.442695041f;
constexpr float kLn2 = 0.6931471806f;

// e^x, with a relative error of 2^-22 and what x is rounded by.
__device__ inline float exp_fast(float x) { return exp2_fast(x * kLog2E); }

struct SoftmaxState {
  float max;
  float sum;
};

__device__ inline SoftmaxState init_softmax() { return {-INFINITY, 0.0f}; }

// What a sum with reference `from` has to be scaled by to have `to`.
__device__ inline float softmax_scale(float from, float to) {
  return from == -INFINITY ? 0.0f : exp_fast(from - to);
}

// The same for many that have one reference: exp(from - finite(to)).
__device__ inline float finite(float to) { return to == -INFINITY ? 0.0f : to; }

// What is not a number makes the sum that, too.
__device__ inline void add_softmax(SoftmaxState &state, float logit) {
  if (logit == -INFINITY) return;
  const float max = fmaxf(state.max, logit);
  state.sum = state.sum * softmax_scale(state.max, max) + exp_fast(logit - max);
  state.max = max;
}

__device__ inline SoftmaxState merge_softmax(SoftmaxState a, SoftmaxState b) {
  const float max = fmaxf(a.max, b.max);
  return {max, a.sum * softmax_scale(a.max, max) +
                   b.sum * softmax_scale(b.max, max)};
}

// ln of the softmax sum.
__device__ inline float log_sum(SoftmaxState state) {
  return state.max + logf(state.sum);
}

// The same of a state in units of ln 2.
__device__ inline float log_sum_of_bits(SoftmaxState state) {
  return kLn2 * state.max + logf(state.sum);
}

// The state over all lanes of a warp, in every lane.
__device__ inline SoftmaxState warp_softmax(SoftmaxState state) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    const SoftmaxState other = {__shfl_xor_sync(~0u, state.max, offset),
                                __shfl_xor_sync(~0u, state.sum, offset)};
    state = merge_softmax(state, other);
  }
  return state;
}
