// Repetition penalty, temperature, top-k, top-p, min-p and one draw, or the
// most likely id where the temperature is 0. Writes the id to the output ring
// and moves the sequence on.
//
// One block per sequence reads its logits, 4 bytes per id, once where it takes
// the most likely id, and once per digit of a threshold where it filters.
// Weights are summed as whole numbers, so that the sums do not depend on the
// order of the threads and a draw is the same from run to run. The alternative
// that lost: sorting the logits.
#include "lib/overlap.cuh"
#include "lib/reduce.cuh"
#include "lib/softmax_state.cuh"
#include "lib/step.cuh"
#include "runtime/launch.cuh"

namespace {

constexpr uint32_t kThreads = 1024;
constexpr uint32_t kWarps = kThreads / 32;

enum SamplingWord {
  kTemperature = 0,
  kTopK = 1,
  kTopP = 2,
  kMinP = 3,
  kRepetitionPenalty = 4,
  kStopCount = 5,
  kStopIds = 8,
  kSamplingWords = 32
};

// Logits of one sequence, as the options change them.
struct Logits {
  const float *raw;
  const uint32_t *seen;
  float penalty;

  // Positive logits of ids seen before are divided, negative ones multiplied.
  __device__ float operator()(uint32_t id) const {
    const float logit = raw[id];
    if ((seen[id / 32] >> id % 32 & 1) == 0) return logit;
    return logit > 0.0f ? logit / penalty : logit * penalty;
  }
};

// A weight exp(l) ≤ 1 in units of 2^-36: sums of any number of ids are exact.
constexpr float kWeightUnit = 68719476736.0f;

__device__ inline uint64_t weight_of(float scaled) {
  return static_cast<uint64_t>(expf(scaled) * kWeightUnit + 0.5f);
}

// -l in units of 2^-26: what thresholds are searched by. Smaller is likelier.
// Below -64, where weights are 0, all are alike.
__device__ inline uint32_t rank_of(float scaled) {
  const float rank = -scaled * 67108864.0f;
  return rank < 4294967040.0f ? static_cast<uint32_t>(rank) : 0xffffffffu;
}

// A histogram of weights: 37 bits in limbs of 12, 12 and 13, whose sums over
// 2^18 ids fit in 32 bits.
struct Histogram {
  uint32_t limbs[3][256];

  __device__ void add(uint32_t bucket, uint64_t weight) {
    atomicAdd(limbs[0] + bucket, static_cast<uint32_t>(weight & 4095));
    atomicAdd(limbs[1] + bucket, static_cast<uint32_t>(weight >> 12 & 4095));
    atomicAdd(limbs[2] + bucket, static_cast<uint32_t>(weight >> 24));
  }
  __device__ uint64_t get(uint32_t bucket) const {
    return limbs[0][bucket] + (static_cast<uint64_t>(limbs[1][bucket]) << 12) +
           (static_cast<uint64_t>(limbs[2][bucket]) << 24);
  }
};

struct Shared {
  Histogram histogram;
  SoftmaxState states[kWarps];
  uint64_t best[kWarps];
  uint64_t sums[kWarps];
  uint64_t before;
  uint32_t digit;
  uint32_t chosen;
};

// The sum over the block, in every thread.
__device__ inline uint64_t block_total(uint64_t x, Shared &shared) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    x += __shfl_xor_sync(kAllLanes, static_cast<unsigned long long>(x), offset);
  }
  __syncthreads();
  if (lane_id() == 0) shared.sums[warp_id()] = x;
  __syncthreads();
  uint64_t sum = 0;
  for (uint32_t w = 0; w < kWarps; w++) sum += shared.sums[w];
  return sum;
}

// The smallest rank up to which the weights of ids, from the likeliest on, add
// up to `wanted`, which is at most the sum of all. `weight(id, rank)` is 0 for
// ids that do not count.
template <class Scaled, class Weight>
__device__ inline uint32_t find_rank(uint32_t vocabulary, uint64_t wanted,
                                     Shared &shared, Scaled scaled,
                                     Weight weight) {
  uint32_t prefix = 0, mask = 0;
  for (int shift = 24; shift >= 0; shift -= 8) {
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < 3 * 256; i += kThreads) {
      shared.histogram.limbs[i / 256][i % 256] = 0;
    }
    __syncthreads();
    for (uint32_t id = threadIdx.x; id < vocabulary; id += kThreads) {
      const float l = scaled(id);
      const uint32_t rank = rank_of(l);
      if ((rank & mask) != prefix) continue;
      const uint64_t w = weight(l, rank);
      if (w != 0) shared.histogram.add(rank >> shift & 255, w);
    }
    __syncthreads();
    if (warp_id() == 0) {
      // Eight buckets per lane.
      uint64_t mine = 0;
      for (uint32_t i = 0; i < 8; i++) {
        mine += shared.histogram.get(8 * lane_id() + i);
      }
      uint64_t running = mine;
#pragma unroll
      for (int offset = 1; offset < 32; offset *= 2) {
        const uint64_t other = __shfl_up_sync(
            kAllLanes, static_cast<unsigned long long>(running), offset);
        if (lane_id() >= static_cast<uint32_t>(offset)) running += other;
      }
      uint64_t before = running - mine;
      if (before < wanted && wanted <= running) {
        uint32_t digit = 8 * lane_id();
        while (before + shared.histogram.get(digit) < wanted) {
          before += shared.histogram.get(digit++);
        }
        shared.digit = digit;
        shared.before = before;
      }
    }
    __syncthreads();
    prefix |= shared.digit << shift;
    mask |= 255u << shift;
    wanted -= shared.before;
  }
  return prefix;
}

// Draws an id among those of rank up to `last`, in the order of ids. Where none
// has a weight, because logits are not numbers, it is `fallback`.
template <class Scaled>
__device__ inline uint32_t draw(uint32_t vocabulary, uint32_t last,
                                uint32_t random_bits, uint32_t fallback,
                                Shared &shared, Scaled scaled) {
  if (threadIdx.x == 0) shared.chosen = fallback;
  const auto weight = [&](uint32_t id) -> uint64_t {
    if (id >= vocabulary) return 0;
    const float l = scaled(id);
    return rank_of(l) <= last ? weight_of(l) : 0;
  };
  // Each warp owns a run of ids.
  const uint32_t run = (vocabulary + kWarps - 1) / kWarps;
  const uint32_t begin = warp_id() * run;
  const uint32_t end = min(vocabulary, begin + run);
  uint64_t mine = 0;
  for (uint32_t id = begin + lane_id(); id < end; id += 32) {
    mine += weight(id);
  }
  const uint64_t total = block_total(mine, shared);
  uint64_t left =
      __umul64hi(total << 8, static_cast<uint64_t>(random_bits) << 32);
  uint64_t before = 0;
  for (uint32_t w = 0; w < warp_id(); w++) before += shared.sums[w];
  if (left >= before && left < before + shared.sums[warp_id()]) {
    left -= before;
    for (uint32_t first = begin; first < end; first += 32) {
      const uint32_t id = first + lane_id();
      uint64_t running = id < end ? weight(id) : 0;
#pragma unroll
      for (int offset = 1; offset < 32; offset *= 2) {
        const uint64_t other = __shfl_up_sync(
            kAllLanes, static_cast<unsigned long long>(running), offset);
        if (lane_id() >= static_cast<uint32_t>(offset)) running += other;
      }
      const uint32_t passed = __ballot_sync(kAllLanes, running > left);
      if (passed != 0) {
        if (lane_id() == 0) shared.chosen = first + __ffs(passed) - 1;
        break;
      }
      left -=
          __shfl_sync(kAllLanes, static_cast<unsigned long long>(running), 31);
    }
  }
  __syncthreads();
  return shared.chosen;
}

// The PCG output permutation (O'Neill, 2014).
__device__ inline uint32_t permute(uint32_t value) {
  const uint32_t state = value * 747796405u + 2891336453u;
  const uint32_t word = ((state >> ((state >> 28) + 4)) ^ state) * 277803737u;
  return (word >> 22) ^ word;
}

// 24 random bits that depend on the seed and the counter alone.
__device__ inline uint32_t random_bits(const uint32_t *state) {
  const uint32_t seed =
      permute(state[kStateSeedLow] + permute(state[kStateSeedHigh]));
  return permute(state[kStateProduced] + seed) >> 8;
}

__global__ void __launch_bounds__(kThreads)
    sample_kernel(skv_sample_args args) {
  __shared__ Shared shared;
  begin_kernel();
  const bool prefill = args.step.kind == SKV_PREFILL;
  const uint32_t end = row_end(args.step);
  if (end == 0) return;
  const Row row = row_of(args.step, prefill ? end - 1 : blockIdx.x);
  if (!row.live) return;
  const uint32_t vocabulary = args.sizes.vocabulary;
  const uint32_t *options = args.sampling + row.sequence * kSamplingWords;
  const auto option = [&](uint32_t word) {
    return __uint_as_float(options[word]);
  };
  const size_t words = (vocabulary + 31) / 32;
  const Logits logits = {
      args.logits +
          (prefill ? 0 : static_cast<size_t>(blockIdx.x)) * vocabulary,
      args.seen + row.sequence * words, option(kRepetitionPenalty)};

  // What the end of the kernel writes is read by all threads before they meet.
  uint32_t *state = args.step.state + row.sequence * kStateWords;
  const uint32_t produced = state[kStateProduced];
  const uint32_t bits = random_bits(state);
  const size_t ring =
      static_cast<size_t>(row.sequence) * args.ring + produced % args.ring;
  const uint32_t forced = args.forced[ring];

  // The most likely id, ties to the lowest, and the softmax sum of all.
  SoftmaxState all = init_softmax();
  uint64_t best = kNoKey;
  for (uint32_t id = threadIdx.x; id < vocabulary; id += kThreads) {
    add_softmax(all, logits.raw[id]);
    best = min(best, order_key(-logits(id), id));
  }
  all = warp_softmax(all);
  best = warp_min(best);
  if (lane_id() == 0) {
    shared.states[warp_id()] = all;
    shared.best[warp_id()] = best;
  }
  __syncthreads();
  all = init_softmax();
  for (uint32_t w = 0; w < kWarps; w++) {
    all = merge_softmax(all, shared.states[w]);
    best = min(best, shared.best[w]);
  }
  uint32_t id = min(static_cast<uint32_t>(best), vocabulary - 1);

  const float temperature = option(kTemperature);
  if (forced < vocabulary) {
    id = forced;
  } else if (temperature != 0.0f) {
    const float max = logits(id);
    const auto scaled = [&](uint32_t i) {
      return (logits(i) - max) / temperature;
    };
    uint32_t last = 0xffffffffu;
    const uint32_t top_k = options[kTopK];
    if (top_k > 0 && top_k < vocabulary) {
      last = find_rank(vocabulary, top_k, shared, scaled,
                       [](float, uint32_t) { return 1ull; });
    }
    if (option(kTopP) < 1.0f) {
      uint64_t mine = 0;
      for (uint32_t i = threadIdx.x; i < vocabulary; i += kThreads) {
        const float l = scaled(i);
        if (rank_of(l) <= last) mine += weight_of(l);
      }
      const double mass = static_cast<double>(block_total(mine, shared));
      const uint64_t wanted = static_cast<uint64_t>(ceil(option(kTopP) * mass));
      const uint32_t kept = last;
      last = find_rank(vocabulary, wanted == 0 ? 1 : wanted, shared, scaled,
                       [=](float l, uint32_t rank) {
                         return rank <= kept ? weight_of(l) : 0ull;
                       });
    }
    if (option(kMinP) > 0.0f) {
      last = min(last, rank_of(logf(option(kMinP))));
    }
    id = draw(vocabulary, last, bits, id, shared, scaled);
  }

  if (threadIdx.x != 0) return;
  args.next_tokens[row.sequence] = id;
  uint32_t *entry = args.output + ring * 2;
  entry[0] = id;
  entry[1] = __float_as_uint(logits.raw[id] - log_sum(all));
  bool finished = produced + 1 >= state[kStateLimit];
  for (uint32_t i = 0; i < options[kStopCount]; i++) {
    finished = finished || options[kStopIds + i] == id;
  }
  state[kStatePosition] = row.position + 1;
  state[kStateProduced] = produced + 1;
  if (finished) state[kStateFinished] = 1;
}

}  // namespace

Needs sample_needs(const skv_sample_args &, uint32_t) { return {}; }

cudaError_t launch_sample(const skv_sample_args &args, const Launch &launch) {
  const uint32_t blocks = args.step.kind == SKV_PREFILL ? 1 : args.step.rows;
  return launch_kernel(launch, sample_kernel, blocks, kThreads, 0, args);
}
