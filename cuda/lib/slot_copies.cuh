// Slots on their way to the tiles of a warp in shared memory.
#pragma once

#include "attend_shape.cuh"

// 16 bytes of a key and those of its value, for each lane: the same columns of
// every line that it copies.
template <class Shape>
struct SlotCopies {
  static constexpr int kDim = Shape::kDim;
  static constexpr uint32_t kChunks = kDim / 8;
  // Lines that a warp copies at a time.
  static constexpr uint32_t kLines = 32 / kChunks;

  // Of the head's first slot.
  const skv_cached *keys;
  const skv_cached *values;
  // Of all lines; a constant where heads have all dimensions that there is room
  // for, so that addresses of lines are one address and constants.
  uint32_t given_dim;

  __device__ void init(const skv_merge_attend_args &args, const HeadJob &job) {
    given_dim = args.sizes.head_dim;
    const size_t first =
        static_cast<size_t>(job.offset) * head_dim() + column();
    keys = args.cache.slots.keys + first;
    values = args.cache.slots.values + first;
  }

  __device__ uint32_t head_dim() const {
    return Shape::kIsExact ? kDim : given_dim;
  }
  // Of the lines that are copied together.
  __device__ static uint32_t line() { return lane_id() / kChunks; }
  __device__ static uint32_t column() { return lane_id() % kChunks * 8; }

  // Zeros where it is not wanted, and beyond the end of a line.
  __device__ void copy_chunk(skv_cached *to, const skv_cached *from,
                             bool wanted) const {
    if (Shape::kIsExact || head_dim() % 8 == 0) {
      copy_async(to, from,
                 wanted && (Shape::kIsExact || column() < head_dim()));
      return;
    }
    uint32_t pairs[4] = {};
    if (wanted) {
      load_pairs<8, false>(pairs, from - column(), column(), head_dim());
    }
    *reinterpret_cast<uint4 *>(to) = {pairs[0], pairs[1], pairs[2], pairs[3]};
  }

  // Starts to copy the slots from `first` on to a tile: zeros from `end` on,
  // and nothing for slot `missing`. WHOLE: there is neither.
  template <bool WHOLE>
  __device__ void copy_lines(uint32_t first, uint32_t end, uint32_t missing,
                             skv_cached *tile) const {
    const size_t skipped = static_cast<size_t>(first + line()) * head_dim();
    const skv_cached *key = keys + skipped, *value = values + skipped;
    skv_cached *to = tile + line() * kLinePitch<kDim> + column();
#pragma unroll
    for (uint32_t c = 0; c < kWarpSlots; c += kLines) {
      const uint32_t slot = first + line() + c;
      if (!WHOLE && slot == missing) continue;
      const bool wanted = WHOLE || slot < end;
      skv_cached *at = to + c * kLinePitch<kDim>;
      copy_chunk(at, key + c * head_dim(), wanted);
      copy_chunk(at + kWarpSlots * kLinePitch<kDim>, value + c * head_dim(),
                 wanted);
    }
  }

  // The same, whichever it is.
  __device__ void copy_tile(uint32_t first, uint32_t end, uint32_t missing,
                            skv_cached *tile) const {
    if (first + kWarpSlots <= end && missing - first >= kWarpSlots) {
      copy_lines<true>(first, end, missing, tile);
    } else {
      copy_lines<false>(first, end, missing, tile);
    }
  }

  // Starts to copy one slot to its line.
  __device__ void copy_slot(uint32_t slot, skv_cached *to) const {
    if (line() != 0) return;
    const size_t skipped = static_cast<size_t>(slot) * head_dim();
    copy_chunk(to + column(), keys + skipped, true);
    copy_chunk(to + kWarpSlots * kLinePitch<kDim> + column(), values + skipped,
               true);
  }
};
