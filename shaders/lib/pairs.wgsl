// What merging two slots costs: see `src/reference/pairs.ts` for the source and
// the formulas.
//
// A kernel declares `part_values`, THREADS of vec2<f32> in workgroup memory,
// and defines
//   slot_of(candidate)  the slot with a number
//   is_held(candidate)  whether it holds a token

// Whether squared distances of keys and values are multiplied or added.
override PRODUCT_DISTANCE: bool = false;
// keyWeight / √HEAD_DIM
override KEY_WEIGHT: f32 = 0.0;
override VALUE_WEIGHT: f32 = 0.0;
// Whether a slot only looks at targets that are heavier than itself.
override HEAVIER_TARGETS: bool = false;
// Whether the nearest target is looked for, whatever the weights.
override BY_DISTANCE: bool = false;

// Where two slots are the same, their cost still has a logarithm.
const LEAST_DISTANCE = 1e-30;

// What squared distances of keys and of values count.
struct PairScale {
  keys: f32,
  values: f32,
}

fn pair_scale(spread: f32) -> PairScale {
  let values = select(0.0, VALUE_WEIGHT / max(spread, 1e-30), spread > 0.0);
  return PairScale(KEY_WEIGHT, values);
}

// How far slots are apart whose keys and values have these scaled distances.
fn pair_distance(keys: f32, values: f32) -> f32 {
  return select(keys + values, keys * (1.0 + values), PRODUCT_DISTANCE);
}

// ln of the cost of merging slots whose weights have these logarithms.
fn pair_cost(a: f32, b: f32, distance: f32) -> f32 {
  return a + b - log_add(a, b) + log(max(distance, LEAST_DISTANCE));
}

// Mean squared distance of the values of some candidates from their mean.
fn value_spread(thread: u32, candidates: u32) -> f32 {
  let half = HEAD_DIM / 2u;
  // A thread has two elements and every `parts`th candidate.
  let parts = THREADS / half;
  let part = thread / half;
  let pair = thread % half;
  var sum = vec2<f32>();
  var count = 0u;
  for (var c = part; part < parts && c < candidates; c += parts) {
    if (is_held(c)) {
      sum += unpack_halves(value_word(slot_of(c), pair));
      count += select(0u, 1u, pair == 0u);
    }
  }
  let held = f32(max(1u, sum_words(thread, count)));
  part_values[thread] = sum;
  workgroupBarrier();
  var mean = vec2<f32>();
  for (var p = 0u; p < parts; p++) {
    mean += part_values[p * half + pair];
  }
  mean /= held;
  var squares = 0.0;
  for (var c = part; part < parts && c < candidates; c += parts) {
    if (is_held(c)) {
      let rest = unpack_halves(value_word(slot_of(c), pair)) - mean;
      squares += dot(rest, rest);
    }
  }
  return sum_floats(thread, squares) / held;
}
