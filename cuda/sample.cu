// Repetition penalty, temperature, top-k, top-p, min-p and one draw, or the
// most likely id where the temperature is 0. Writes the id to the output ring
// and moves the sequence on.
//
// Three kernels, each of which reads the logits once, 4 bytes per id, with many
// blocks per sequence; the last block of a sequence to finish adds up what the
// others found. The first finds the most likely id and the softmax sum, and
// ends the step where nothing is drawn. The second counts ids and weights by
// coarse ranks, which leaves a narrow range for the thresholds. The third lists
// the ids of that range; its last block finds the thresholds among them, and
// then the block of ids, and the id, that the draw falls on.
//
// Weights are summed as whole numbers, so a draw is the same from run to run.
// The alternatives that lost: one block that reads the logits once per digit of
// a threshold, 85 µs for 128 thousand ids on an H200; sorting the logits.
#include "lib/count_ranks.cuh"
#include "lib/draw_id.cuh"
#include "lib/survey_logits.cuh"
#include "runtime/launch.cuh"

namespace {

// Ids that are worth a block.
constexpr uint32_t kLeastIds = 1024;

uint32_t rows_of(const skv_sample_args &args) {
  return args.step.kind == SKV_PREFILL ? 1 : args.step.rows;
}

SampleWork take_work(const skv_sample_args &args, uint32_t multiprocessors,
                     Scratch *scratch) {
  const uint32_t vocabulary = args.sizes.vocabulary;
  const size_t rows = rows_of(args);
  SampleWork work = {};
  const uint32_t wanted = 4 * multiprocessors / rows_of(args);
  const uint32_t most = (vocabulary + kLeastIds - 1) / kLeastIds;
  work.blocks = max(1u, min(min(wanted, most), kMostBlocks));
  work.slice = (vocabulary + work.blocks - 1) / work.blocks;
  work.plans = scratch->take<SamplePlan>(rows);
  work.parts = scratch->take<SamplePart>(rows * work.blocks);
  work.counts = scratch->take<uint32_t>(rows * kBuckets);
  work.weights = scratch->take<uint64_t>(rows * kBuckets);
  work.sums = scratch->take<uint64_t>(rows * work.blocks);
  work.listed = scratch->take<uint32_t>(rows);
  work.list = scratch->take<uint32_t>(rows * kMostListed);
  return work;
}

}  // namespace

Needs sample_needs(const skv_sample_args &args, uint32_t multiprocessors) {
  Scratch scratch(nullptr);
  take_work(args, multiprocessors, &scratch);
  Needs needs;
  needs.scratch = scratch.taken(nullptr);
  needs.tickets = rows_of(args);
  return needs;
}

cudaError_t launch_sample(const skv_sample_args &args, const Launch &launch) {
  Scratch scratch(launch.scratch);
  SampleWork work = take_work(args, launch.multiprocessors, &scratch);
  work.tickets = launch.tickets;
  const dim3 grid(work.blocks, rows_of(args));
  cudaError_t status =
      launch_kernel(launch, survey_kernel, grid, kSampleThreads, 0, args, work);
  if (status != cudaSuccess) return status;
  status =
      launch_kernel(launch, count_kernel, grid, kSampleThreads, 0, args, work);
  if (status != cudaSuccess) return status;
  return launch_kernel(launch, draw_kernel, grid, kSampleThreads, 0, args,
                       work);
}
