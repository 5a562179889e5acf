// Attention of one new token per sequence over the voted slots of each KV head,
// softmax(q·k/√d + ln votes), then the policy's work on the head: scores, and
// one slot merged or dropped where the head is over its budget. The output is
// that of the uncompressed slots.
//
// Attention reads keys and values once, 4 head_dim bytes per slot, and the vote
// biases. The slots of a head are split over blocks, and by tiles over warps:
// see lib/attend_slots.cuh. The last block of a head to finish adds the parts
// up: see lib/attend_output.cuh. Where a merge will ask for the most similar
// key, it is looked for on the way, for slots that are likely to go: see
// lib/riders.cuh.
//
// The policy's work needs the softmax sums of the whole head, and nothing needs
// its result before the next step. So it is a kernel of its own on a stream
// beside the main one, which begins with the logits: see lib/evict_step.cuh and
// runtime/launcher.cuh. It reads logits and side fields, about 40
// bytes per slot, and all keys once more where another slot goes than those
// that were likely.
//
// The alternatives that lost: the policy's work by the last block of attention,
// which the rest of the layer then waits for: 17 µs per layer with 512 slots on
// an H200, a tenth of a step of an 8B model; and right after attention, beside
// the products of the layer: 7 µs.
#include "lib/attend_output.cuh"
#include "lib/evict_step.cuh"
#include "lib/leave_evidence.cuh"
#include "lib/overlap.cuh"
#include "runtime/launch.cuh"

namespace {

template <class Shape>
__global__ void __launch_bounds__(kAttendThreads, Shape::kBlocks)
    attend_kernel(skv_merge_attend_args args, AttendParts parts,
                  Evidence evidence) {
  constexpr int kDim = Shape::kDim;
  uint4 *shared_memory = dynamic_shared_memory();
  AttendShared<kDim> &shared =
      *reinterpret_cast<AttendShared<kDim> *>(shared_memory);
  let_next_start();
  // What is read here is as it was before the step: see lib/overlap.cuh. All of
  // it is on its way before any of it is looked at.
  const Row row = row_of(args.step, blockIdx.z);
  const HeadJob job = job_of(args, row);
  WarpAttention<Shape> warp;
  if constexpr (Shape::kRides) warp.riders.read(evidence.riders, job.index);
  if (!row.live) {
    wait_for_previous();
    if (blockIdx.x == 0 && job.first_head == 0 && threadIdx.x == 0) {
      evidence.rows[job.index] = {};
    }
    return;
  }
  const uint32_t splits = splits_of(parts, job.high);
  if (blockIdx.x >= splits) {
    wait_for_previous();
    return;
  }
  const size_t first_logit =
      static_cast<size_t>(job.index) * job.group + job.first_head;
  warp.run(args, job, share_of(job.high, splits), shared.tiles[warp_id()][0],
           evidence.logits + first_logit * args.cache.max_capacity);
  if (blockIdx.x == 0) keep_queries(args, job, evidence);
  gather_warps(job, warp, shared);
  const bool rode = warp.has_riders(job);
  if (rode) leave_nearest(job, evidence.riders, shared);
  uint2 counts;
  if (splits == 1) {
    counts = finish_alone<kDim>(args, job, evidence, shared);
  } else {
    if (!publish(job, parts, splits, shared)) return;
    counts = combine<kDim>(args, job, parts, evidence, splits, shared);
  }
  leave_evidence(job, evidence, counts, rode ? splits : 0, shared);
}

// How the slots of a head are split, and the sizes that follow.
struct Plan {
  uint32_t heads;
  uint32_t group;
  uint32_t dim;
  uint32_t wanted_splits;
  uint32_t few_splits;
  uint32_t most_splits;
  // Parts of all heads; none where a head is always in one.
  size_t parts;
};

// Splits of each of `heads` for a device that runs `blocks` blocks at a time:
// one wave of them. A block begins with waiting for its first slots and ends
// with adding up, so more waves, with a last one that is nearly full, would do
// that more often; a wave that is not full still has enough bytes on their way.
uint32_t splits_for(uint32_t heads, uint32_t blocks) {
  return min(kMaxSplits, max(1u, blocks / heads));
}

Plan plan_of(const skv_merge_attend_args &args, uint32_t multiprocessors) {
  Plan plan;
  plan.heads = args.step.rows * args.sizes.kv_heads;
  plan.group = args.sizes.heads / args.sizes.kv_heads;
  plan.dim = padded_width(args.sizes.head_dim);
  const int tiles = column_tiles(args.sizes.head_dim, plan.group);
  const uint32_t blocks = multiprocessors * resident_blocks(plan.dim, tiles);
  const uint32_t heads = plan.heads * head_tiles(plan.group);
  plan.wanted_splits = splits_for(heads, blocks);
  plan.few_splits = splits_for(heads, multiprocessors);
  // No block without slots.
  plan.most_splits =
      max(1u, min(plan.wanted_splits,
                  (args.cache.max_capacity + kBlockSlots - 1) / kBlockSlots));
  plan.parts = plan.most_splits == 1
                   ? 0
                   : static_cast<size_t>(plan.heads) * plan.most_splits;
  return plan;
}

template <class Shape>
cudaError_t launch_attend(const skv_merge_attend_args &args,
                          const AttendParts &parts, const Evidence &evidence,
                          const Launch &launch) {
  const auto kernel = attend_kernel<Shape>;
  const size_t bytes = sizeof(AttendShared<Shape::kDim>);
  const cudaError_t status = allow_shared_memory(kernel, bytes);
  if (status != cudaSuccess) return status;
  const uint32_t tiles = head_tiles(args.sizes.heads / args.sizes.kv_heads);
  const dim3 grid(parts.most_splits, args.sizes.kv_heads * tiles,
                  args.step.rows);
  return launch_kernel(launch, kernel, grid, kAttendThreads, bytes, args, parts,
                       evidence);
}

template <int DIM, int TILES, bool EXACT>
cudaError_t launch_exact(const skv_merge_attend_args &args,
                         const AttendParts &parts, const Evidence &evidence,
                         const Launch &launch) {
  if constexpr (DIM <= kMaxRiderWidth) {
    if (evidence.riders.slots != nullptr) {
      return launch_attend<AttendShape<DIM, TILES, EXACT, true>>(
          args, parts, evidence, launch);
    }
  }
  return launch_attend<AttendShape<DIM, TILES, EXACT, false>>(args, parts,
                                                              evidence, launch);
}

template <int DIM>
cudaError_t launch_wide(const skv_merge_attend_args &args,
                        const AttendParts &parts, const Evidence &evidence,
                        const Launch &launch) {
  if (!is_exact(args.sizes.head_dim)) {
    return launch_exact<DIM, 2, false>(args, parts, evidence, launch);
  }
  const uint32_t group = args.sizes.heads / args.sizes.kv_heads;
  return column_tiles(DIM, group) == 1
             ? launch_exact<DIM, 1, true>(args, parts, evidence, launch)
             : launch_exact<DIM, 2, true>(args, parts, evidence, launch);
}

cudaError_t launch_any(const skv_merge_attend_args &args, const Plan &plan,
                       const AttendParts &parts, const Evidence &evidence,
                       const Launch &launch) {
  return with_width(plan.dim, [&](auto width) {
    return launch_wide<decltype(width)::value>(args, parts, evidence, launch);
  });
}

// What a call leaves for the policy, in its own memory.
Evidence evidence_of(const skv_merge_attend_args &args, const Plan &plan,
                     const Launch &launch) {
  Evidence evidence;
  take_evidence(args, launch.multiprocessors, plan.most_splits, launch.own,
                &evidence);
  return evidence;
}

}  // namespace

Needs merge_attend_needs(const skv_merge_attend_args &args,
                         uint32_t multiprocessors) {
  const Plan plan = plan_of(args, multiprocessors);
  Evidence evidence;
  Needs needs;
  needs.scratch =
      aligned_bytes(plan.parts * plan.group * plan.dim * sizeof(float)) +
      aligned_bytes(plan.parts * kMaxGroup * sizeof(float2)) +
      aligned_bytes(plan.parts * sizeof(uint2));
  needs.tickets = plan.parts == 0 ? 0 : plan.heads * head_tiles(plan.group);
  needs.own = take_evidence(args, multiprocessors, plan.most_splits, nullptr,
                            &evidence);
  return needs;
}

cudaError_t launch_merge_attend(const skv_merge_attend_args &args,
                                const Launch &launch) {
  const Plan plan = plan_of(args, launch.multiprocessors);
  const Evidence evidence = evidence_of(args, plan, launch);
  Scratch scratch(launch.scratch);
  AttendParts parts;
  parts.values = scratch.take<float>(plan.parts * plan.group * plan.dim);
  parts.states = scratch.take<float2>(plan.parts * kMaxGroup);
  parts.counts = scratch.take<uint2>(plan.parts);
  parts.tickets = launch.tickets;
  parts.most_splits = plan.most_splits;
  parts.wanted_splits = plan.wanted_splits;
  parts.few_splits = plan.few_splits;
  return launch_any(args, plan, parts, evidence, launch);
}

cudaError_t merge_late(const skv_merge_attend_args &args,
                       const Launch &launch) {
  const Plan plan = plan_of(args, launch.multiprocessors);
  const Evidence evidence = evidence_of(args, plan, launch);
  return args.sizes.head_dim % 8 == 0
             ? launch_policy<true>(args, evidence, launch)
             : launch_policy<false>(args, evidence, launch);
}
