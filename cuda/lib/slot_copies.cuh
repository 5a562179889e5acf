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
  static constexpr uint32_t kMiddle = kWarpSlots / 2;

  // Of the next tile: in its middle, from where instructions reach all lines.
  const skv_cached *keys;
  const skv_cached *values;
  // Of all lines; a constant where heads have all dimensions that there is room
  // for, so that addresses of lines are one address and constants.
  uint32_t given_dim;

  // Begins with the tile whose first slot is `first`.
  __device__ void init(const skv_merge_attend_args &args, const HeadJob &job,
                       uint32_t first) {
    given_dim = args.sizes.head_dim;
    const uint32_t slot = job.offset + first + kMiddle + line();
    const size_t at = static_cast<size_t>(slot) * head_dim() + column();
    keys = args.cache.slots.keys + at;
    values = args.cache.slots.values + at;
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

  // Starts to copy the slots from `first` on, at this lane's first line of a
  // tile: zeros from `end` on, and nothing for slot `missing`. WHOLE: there is
  // neither.
  template <bool WHOLE>
  __device__ void copy_lines(uint32_t first, uint32_t end, uint32_t missing,
                             skv_cached *to) const {
#pragma unroll
    for (uint32_t c = 0; c < kWarpSlots; c += kLines) {
      const uint32_t slot = first + line() + c;
      if (!WHOLE && slot == missing) continue;
      const bool wanted = WHOLE || slot < end;
      const int from =
          static_cast<int>(c - kMiddle) * static_cast<int>(head_dim());
      skv_cached *at = to + c * kLinePitch<kDim>;
      copy_chunk(at, keys + from, wanted);
      copy_chunk(at + kWarpSlots * kLinePitch<kDim>, values + from, wanted);
    }
  }

  // Starts to copy a tile, and turns to the warp's next.
  __device__ void copy_tile(uint32_t first, uint32_t end, skv_cached *to) {
    if (first + kWarpSlots <= end) {
      copy_lines<true>(first, end, kNoSlot, to);
    } else if (first < end) {
      copy_lines<false>(first, end, kNoSlot, to);
    }
    advance();
  }

  // The same for a tile that may have slot `missing`. Nothing is copied from
  // `end` on, not even zeros: nobody waits for those, and what the block finds
  // goes where the tiles were.
  __device__ void copy_tile_but(uint32_t missing, uint32_t first, uint32_t end,
                                skv_cached *to) {
    if (first < end && missing - first < kWarpSlots) {
      copy_lines<false>(first, end, missing, to);
      advance();
    } else {
      copy_tile(first, end, to);
    }
  }

  __device__ void advance() {
    keys += kBlockSlots * head_dim();
    values += kBlockSlots * head_dim();
  }

  // Starts to copy one slot to its line.
  __device__ static void copy_slot(const skv_merge_attend_args &args,
                                   const HeadJob &job, uint32_t slot,
                                   skv_cached *to) {
    if (line() != 0) return;
    SlotCopies only;
    only.init(args, job, slot - kMiddle);
    to += column();
    only.copy_chunk(to, only.keys, true);
    only.copy_chunk(to + kWarpSlots * kLinePitch<kDim>, only.values, true);
  }
};
