// Attention of one new token per sequence over the voted slots of each KV head,
// softmax(q·k/√d + ln votes), then the policy's work on the head: scores, and
// one slot merged or dropped where the head is over its budget. The output is
// that of the uncompressed slots.
//
// Attention reads keys and values once, 4 head_dim bytes per slot, and the vote
// biases. The slots of a head are split over blocks, 16 to a warp at a time:
// see lib/attend_slots.cuh. The last block of a head to finish adds the parts
// up: see lib/attend_parts.cuh.
//
// The policy's work needs the softmax sums of the whole head, and nothing needs
// its result before the next step. So it is a kernel of its own on a stream
// beside the main one, while the next layers are at work: see
// lib/evict_step.cuh. It reads logits and side fields, about 40 bytes per slot,
// and once more the keys where a slot is merged.
//
// The alternative that lost: the policy's work by the last block of attention,
// which the rest of the layer then waits for: 17 µs per layer with 512 slots on
// an H200, a tenth of a step of an 8B model.
#include "lib/attend_parts.cuh"
#include "lib/evict_step.cuh"
#include "lib/overlap.cuh"
#include "runtime/launch.cuh"

namespace {

// Asks for the first slots of a block while the kernel before still runs: they
// are as the step before left them, but for the newest, and the L2 cache is
// where all kernels meet.
template <int DIM>
__device__ inline void prefetch_slots(const skv_merge_attend_args &args,
                                      const AttendParts &parts) {
  const Row row = row_of(args.step, blockIdx.z);
  if (!row.live) return;
  const HeadJob job = job_of(args, row);
  const uint32_t splits = splits_of(parts, job.high);
  const uint32_t tiles = (job.high + kWarpSlots - 1) / kWarpSlots;
  const uint32_t per_split = (tiles + splits - 1) / splits * kWarpSlots;
  const uint32_t slot = blockIdx.x * per_split;
  if (slot >= job.high) return;
  const uint32_t end = min(job.high, slot + per_split);
  const size_t first =
      static_cast<size_t>(job.offset + slot) * args.sizes.head_dim;
  const size_t halves = static_cast<size_t>(end - slot) * args.sizes.head_dim;
  const size_t mine = threadIdx.x * 64;
  if (mine >= halves) return;
  prefetch(args.cache.slots.keys + first + mine);
  prefetch(args.cache.slots.values + first + mine);
}

template <int DIM, bool ALIGNED>
__global__ void __launch_bounds__(kAttendThreads)
    attend_kernel(skv_merge_attend_args args, AttendParts parts,
                  Evidence evidence) {
  uint4 *shared_memory = dynamic_shared_memory();
  AttendShared<DIM> &shared =
      *reinterpret_cast<AttendShared<DIM> *>(shared_memory);
  let_next_start();
  prefetch_slots<DIM>(args, parts);
  wait_for_previous();
  const Row row = row_of(args.step, blockIdx.z);
  if (!row.live) {
    if (blockIdx.x == 0 && threadIdx.x == 0) {
      evidence.rows[blockIdx.z * args.sizes.kv_heads + blockIdx.y] = {};
    }
    return;
  }
  const HeadJob job = job_of(args, row);
  const uint32_t splits = splits_of(parts, job.high);
  if (blockIdx.x >= splits) return;
  load_queries(args, job, shared);
  __syncthreads();

  float *logits = evidence.logits + static_cast<size_t>(job.index) * job.group *
                                        args.cache.max_capacity;
  const uint32_t tiles = (job.high + kWarpSlots - 1) / kWarpSlots;
  const uint32_t per_split = (tiles + splits - 1) / splits * kWarpSlots;
  const uint32_t begin = blockIdx.x * per_split;
  const uint32_t end = min(job.high, begin + per_split);
  WarpAttention<DIM, ALIGNED> warp;
  for (uint32_t first = begin + warp_id() * kWarpSlots; first < end;
       first += kBlockSlots) {
    warp.add(args, job, shared, logits, first, end);
  }
  merge_warps(job, warp, shared);
  uint2 counts;
  if (splits == 1) {
    counts = finish_alone(args, job, evidence, shared);
  } else {
    if (!publish(job, parts, splits, shared)) return;
    counts = combine(args, job, parts, evidence, splits, shared);
  }
  leave_evidence(args, job, evidence, counts, shared);
}

// How the slots of a head are split, and the sizes that follow.
struct Plan {
  uint32_t heads;
  uint32_t group;
  uint32_t dim;
  uint32_t wanted_splits;
  uint32_t most_splits;
  // Parts of all heads; none where a head is always in one.
  size_t parts;
};

Plan plan_of(const skv_merge_attend_args &args, uint32_t multiprocessors) {
  Plan plan;
  plan.heads = args.step.rows * args.sizes.kv_heads;
  plan.group = args.sizes.heads / args.sizes.kv_heads;
  plan.dim = 32;
  while (plan.dim < args.sizes.head_dim) plan.dim *= 2;
  // Two blocks for each multiprocessor, but no block without slots.
  plan.wanted_splits =
      min((2 * multiprocessors + plan.heads - 1) / plan.heads, kMaxSplits);
  plan.most_splits =
      max(1u, min(plan.wanted_splits,
                  (args.cache.max_capacity + kBlockSlots - 1) / kBlockSlots));
  plan.parts = plan.most_splits == 1
                   ? 0
                   : static_cast<size_t>(plan.heads) * plan.most_splits;
  return plan;
}

template <int DIM, bool ALIGNED>
cudaError_t launch_attend(const skv_merge_attend_args &args,
                          const AttendParts &parts, const Evidence &evidence,
                          const Launch &launch) {
  const auto kernel = attend_kernel<DIM, ALIGNED>;
  const size_t bytes = sizeof(AttendShared<DIM>);
  const cudaError_t status = allow_shared_memory(kernel, bytes);
  if (status != cudaSuccess) return status;
  const dim3 grid(parts.most_splits, args.sizes.kv_heads, args.step.rows);
  return launch_kernel(launch, kernel, grid, kAttendThreads, bytes, args, parts,
                       evidence);
}

template <bool ALIGNED>
cudaError_t launch_aligned(const skv_merge_attend_args &args, const Plan &plan,
                           const AttendParts &parts, const Evidence &evidence,
                           const Launch &launch) {
  cudaError_t status;
  switch (plan.dim) {
    case 32:
      status = launch_attend<32, ALIGNED>(args, parts, evidence, launch);
      break;
    case 64:
      status = launch_attend<64, ALIGNED>(args, parts, evidence, launch);
      break;
    case 128:
      status = launch_attend<128, ALIGNED>(args, parts, evidence, launch);
      break;
    default:
      status = launch_attend<256, ALIGNED>(args, parts, evidence, launch);
  }
  if (status != cudaSuccess) return status;
  return launch_policy<ALIGNED>(args, evidence, launch);
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
  needs.tickets = plan.parts == 0 ? 0 : plan.heads;
  needs.own = take_evidence(args, multiprocessors, nullptr, &evidence);
  return needs;
}

cudaError_t launch_merge_attend(const skv_merge_attend_args &args,
                                const Launch &launch) {
  const Plan plan = plan_of(args, launch.multiprocessors);
  Evidence evidence;
  take_evidence(args, launch.multiprocessors, launch.own, &evidence);
  Scratch scratch(launch.scratch);
  AttendParts parts;
  parts.values = scratch.take<float>(plan.parts * plan.group * plan.dim);
  parts.states = scratch.take<float2>(plan.parts * kMaxGroup);
  parts.counts = scratch.take<uint2>(plan.parts);
  parts.tickets = launch.tickets;
  parts.most_splits = plan.most_splits;
  parts.wanted_splits = plan.wanted_splits;
  return args.sizes.head_dim % 8 == 0
             ? launch_aligned<true>(args, plan, parts, evidence, launch)
             : launch_aligned<false>(args, plan, parts, evidence, launch);
}
