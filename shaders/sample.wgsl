// Repetition penalty, temperature, top-k, top-p, min-p and one draw, or the
// most likely id; then moves the sequence on.
//
// One workgroup per sequence reads the logits a few times, 4 bytes per id and
// pass. The thresholds of top-k and top-p are searched for in the bits of the
// floats, eight or one at a time, so nothing is sorted and ids that tie at a
// threshold stay together. A sort would move the whole vocabulary many times.

struct Params {
  vocabulary: u32,
  seen_words: u32,
  ring: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
// (sequences)
@group(0) @binding(1) var<storage, read_write> next_tokens: array<u32>;
// (sequences, ring, 2): id, and the bits of its log probability
@group(0) @binding(2) var<storage, read_write> output: array<u32>;
// (sequences, ring): ids that are taken whatever their probability
@group(0) @binding(3) var<storage, read> forced: array<u32>;
// (rows, vocabulary)
@group(0) @binding(4) var<storage, read> logits: array<f32>;
// (sequences, SamplingWord.count)
@group(0) @binding(5) var<storage, read> sampling: array<u32>;
// (sequences, seen_words)
@group(0) @binding(6) var<storage, read> seen: array<u32>;
// (ChunkWord.count), in a prefill step
@group(0) @binding(7) var<storage, read> chunk: array<u32>;
// (sequences, StateWord.count)
@group(0) @binding(8) var<storage, read_write> state: array<u32>;

override PREFILL: bool = false;

const THREADS = 256u;
const NOT_FORCED = 0xffffffffu;

// See SamplingWord.
const SAMPLING_TEMPERATURE = 0u;
const SAMPLING_TOP_K = 1u;
const SAMPLING_TOP_P = 2u;
const SAMPLING_MIN_P = 3u;
const SAMPLING_PENALTY = 4u;
const SAMPLING_STOP_COUNT = 5u;
const SAMPLING_STOP_IDS = 8u;
const SAMPLING_WORDS = 32u;

var<workgroup> histogram: array<atomic<u32>, THREADS>;
var<workgroup> shared_words: array<u32, 2>;
var<workgroup> shared_floats: array<f32, 2>;

var<private> base: u32;
var<private> first_seen: u32;
var<private> penalty: f32;
var<private> temperature: f32;
var<private> top: f32;

// The logit of an id after the repetition penalty.
fn penalized(id: u32) -> f32 {
  let logit = logits[base + id];
  let is_seen = ((seen[first_seen + id / 32u] >> (id % 32u)) & 1u) != 0u;
  return select(
    logit,
    select(logit * penalty, logit / penalty, logit > 0.0),
    is_seen,
  );
}

// The same below the largest, over the temperature: at most 0.
fn scaled(id: u32) -> f32 {
  return max((penalized(id) - top) / temperature, -1e30);
}

// Ordered bits of the `rank`th largest scaled logit.
fn select_largest(thread: u32, rank: u32) -> u32 {
  var found = 0u;
  var left = rank;
  for (var shift = 32u; shift > 0u;) {
    shift -= 8u;
    atomicStore(&histogram[thread], 0u);
    workgroupBarrier();
    for (var id = thread; id < params.vocabulary; id += THREADS) {
      let bits = ordered(scaled(id));
      if (((bits ^ found) >> shift) < 256u) {
        // Largest first: bin 0 is that of the largest digit.
        atomicAdd(&histogram[255u - ((bits >> shift) & 255u)], 1u);
      }
    }
    workgroupBarrier();
    let count = atomicLoad(&histogram[thread]);
    let up_to = prefix_sum(thread, count);
    if (up_to >= left && up_to - count < left) {
      shared_words[0] = 255u - thread;
      shared_words[1] = left - (up_to - count);
    }
    found |= workgroupUniformLoad(&shared_words[0]) << shift;
    left = workgroupUniformLoad(&shared_words[1]);
  }
  return found;
}

// Sum of the weights of ids at or above a threshold.
fn mass_above(thread: u32, threshold: u32) -> f32 {
  var mass = 0.0;
  for (var id = thread; id < params.vocabulary; id += THREADS) {
    mass += weight_of(id, threshold);
  }
  return sum_floats(thread, mass);
}

fn weight_of(id: u32, threshold: u32) -> f32 {
  let logit = scaled(id);
  return select(0.0, exp(logit), ordered(logit) >= threshold);
}

// The largest threshold above which at least `share` of the mass lies.
fn select_mass(thread: u32, lowest: u32, share: f32) -> u32 {
  let wanted = share * mass_above(thread, lowest);
  var low = lowest;
  // The largest scaled logit is 0: nothing lies above it.
  var high = ordered(0.0) + 1u;
  while (high - low > 1u) {
    let middle = low + (high - low) / 2u;
    if (mass_above(thread, middle) >= wanted) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

fn choose(thread: u32, best: u32, options: u32, uniform_number: f32) -> u32 {
  temperature = bitcast<f32>(sampling[options + SAMPLING_TEMPERATURE]);
  if (temperature == 0.0) {
    return best;
  }
  let top_k = sampling[options + SAMPLING_TOP_K];
  let top_p = bitcast<f32>(sampling[options + SAMPLING_TOP_P]);
  let min_p = bitcast<f32>(sampling[options + SAMPLING_MIN_P]);
  var threshold = 0u;
  if (top_k > 0u && top_k < params.vocabulary) {
    threshold = select_largest(thread, top_k);
  }
  if (top_p < 1.0) {
    threshold = select_mass(thread, threshold, top_p);
  }
  if (min_p > 0.0) {
    threshold = max(threshold, ordered(log(min_p)));
  }
  return draw(thread, threshold, uniform_number);
}

@compute @workgroup_size(THREADS)
fn sample(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  var sequence = group.x;
  if (PREFILL) {
    if (chunk[CHUNK_ROWS] == 0u) {
      return;
    }
    sequence = chunk[CHUNK_SEQUENCE];
  }
  let at = sequence * STATE_WORDS;
  if (thread == 0u) {
    shared_words[0] = state[at + STATE_FINISHED];
    shared_words[1] = state[at + STATE_PRODUCED];
  }
  let finished = workgroupUniformLoad(&shared_words[0]);
  let produced = workgroupUniformLoad(&shared_words[1]);
  if (!PREFILL && finished != 0u) {
    return;
  }
  let options = sequence * SAMPLING_WORDS;
  base = group.x * params.vocabulary;
  first_seen = sequence * params.seen_words;
  penalty = bitcast<f32>(sampling[options + SAMPLING_PENALTY]);

  var likeliest = unranked();
  var largest = unranked();
  for (var id = thread; id < params.vocabulary; id += THREADS) {
    let mine = Ranked(-penalized(id), id, id);
    if (is_before(mine, likeliest)) {
      likeliest = mine;
    }
    let raw = Ranked(-logits[base + id], id, id);
    if (is_before(raw, largest)) {
      largest = raw;
    }
  }
  let best = first_ranked(thread, likeliest);
  top = -best.key;
  let raw_max = -first_ranked(thread, largest).key;
  var sum = 0.0;
  for (var id = thread; id < params.vocabulary; id += THREADS) {
    sum += exp(logits[base + id] - raw_max);
  }
  let log_sum = raw_max + log(sum_floats(thread, sum));

  let place = produced % params.ring;
  var id = forced[sequence * params.ring + place];
  if (id == NOT_FORCED) {
    let uniform_number = random_uniform(
      state[at + STATE_SEED_LOW],
      state[at + STATE_SEED_HIGH],
      produced,
    );
    // Logits that are not numbers leave no best id.
    let likely = select(best.slot, 0u, best.slot == NO_SLOT);
    id = choose(thread, likely, options, uniform_number);
  }
  if (thread != 0u) {
    return;
  }
  next_tokens[sequence] = id;
  let entry = (sequence * params.ring + place) * 2u;
  output[entry] = id;
  output[entry + 1u] = bitcast<u32>(logits[base + id] - log_sum);
  if (PREFILL) {
    state[at + STATE_POSITION] = chunk[CHUNK_POSITION] + chunk[CHUNK_ROWS];
  } else {
    state[at + STATE_POSITION] += 1u;
  }
  state[at + STATE_PRODUCED] = produced + 1u;
  var is_stop = produced + 1u >= state[at + STATE_LIMIT];
  for (var i = 0u; i < sampling[options + SAMPLING_STOP_COUNT]; i++) {
    is_stop = is_stop || sampling[options + SAMPLING_STOP_IDS + i] == id;
  }
  if (is_stop) {
    state[at + STATE_FINISHED] = 1u;
  }
}
