// Drawing one of the ids that are left, by running sums in the order of ids.
//
// A kernel defines
//   weight_of(id, threshold)  the weight of an id, 0 below the threshold

var<workgroup> segment_sums: array<f32, THREADS>;

struct Segment {
  first: u32,
  end: u32,
  left: f32,
}

// Splits the ids `first .. end` into a segment per thread, and finds the one in
// which the running sum of weights passes `left`: the last segment with any
// weight, if none does. With a negative `left` it passes `share` of the whole.
fn find_segment(
  thread: u32,
  within: Segment,
  threshold: u32,
  share: f32,
) -> Segment {
  let size = (within.end - within.first + THREADS - 1u) / THREADS;
  let first = min(within.end, within.first + thread * size);
  let end = min(within.end, first + size);
  var sum = 0.0;
  for (var id = first; id < end; id++) {
    sum += weight_of(id, threshold);
  }
  workgroupBarrier();
  segment_sums[thread] = sum;
  workgroupBarrier();
  if (thread == 0u) {
    var left = within.left;
    if (left < 0.0) {
      left = 0.0;
      for (var i = 0u; i < THREADS; i++) {
        left += segment_sums[i];
      }
      left *= share;
    }
    var found = 0u;
    var inside = left;
    for (var i = 0u; i < THREADS; i++) {
      if (segment_sums[i] > 0.0) {
        found = i;
        inside = left;
        left -= segment_sums[i];
        if (left < 0.0) {
          break;
        }
      }
    }
    shared_words[0] = found;
    shared_floats[0] = inside;
  }
  let found = workgroupUniformLoad(&shared_words[0]);
  let inside = workgroupUniformLoad(&shared_floats[0]);
  let start = min(within.end, within.first + found * size);
  return Segment(start, min(within.end, start + size), inside);
}

// Draws an id at or above a threshold.
fn draw(thread: u32, threshold: u32, uniform_number: f32) -> u32 {
  let all = Segment(0u, params.vocabulary, -1.0);
  let coarse = find_segment(thread, all, threshold, uniform_number);
  let fine = find_segment(thread, coarse, threshold, 0.0);
  var chosen = fine.first;
  var left = fine.left;
  for (var id = fine.first; id < fine.end; id++) {
    let weight = weight_of(id, threshold);
    if (weight > 0.0) {
      chosen = id;
      left -= weight;
      if (left < 0.0) {
        break;
      }
    }
  }
  return chosen;
}

// A number in [0, 1) with 24 random bits, by the PCG output permutation.
fn random_uniform(seed_low: u32, seed_high: u32, counter: u32) -> f32 {
  let bits = permute(counter + permute(seed_low + permute(seed_high)));
  return f32(bits >> 8u) / 16777216.0;
}

fn permute(value: u32) -> u32 {
  let mixed = value * 747796405u + 2891336453u;
  let word = ((mixed >> ((mixed >> 28u) + 4u)) ^ mixed) * 277803737u;
  return (word >> 22u) ^ word;
}
