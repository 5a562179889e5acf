// The numbers of a policy: see `src/policies/parts.ts`.

const SCORE_POSITION = 0u;
const SCORE_ACCUMULATED = 1u;
const SCORE_EMA = 2u;
const SCORE_MEAN = 3u;
const SCORE_LAST = 4u;
const SCORE_AGE = 5u;
const SCORE_KEY_DISTANCE = 6u;
const SCORE_STEP_GAIN = 7u;
const SCORE_EXPECTED = 8u;
override SCORE: u32 = SCORE_POSITION;
// ln alpha and ln(1 - alpha) of the moving sum; alpha is 0 where there is none.
override LOG_ALPHA: f32 = -1e30;
override LOG_REST: f32 = 0.0;
// Whether the moving sum is over exp(q·k/√d) itself.
override RAW_SCALE: bool = false;
override COUNT_VOTES: bool = false;
// Whether anything reads the scores of slots.
override OBSERVE: bool = true;

// Whether scores count times the norms of values, beside a first stage; the
// power of a norm; what is added to a score then, and its logarithm.
override COUNT_VALUES: bool = false;
override FIRST_STAGE: f32 = 0.0;
override VALUE_POWER: u32 = 1u;
override VALUE_EPSILON: f32 = 0.0;
override LOG_VALUE_EPSILON: f32 = -1e30;

// Whether scores take more than a slot's own fields: the keys of the head, the
// neighbours up to a distance, the heads of the layer.
override RATED: bool = false;
const POOL_NONE = 0u;
const POOL_MEAN = 1u;
const POOL_MAX = 2u;
override POOL: u32 = POOL_NONE;
override POOL_REACH: u32 = 0u;
override LAYER_SCOPE: bool = false;

const MERGE_NEVER = 0u;
const MERGE_DROP = 1u;
const MERGE_VOTES = 2u;
const MERGE_RIGHT_NEIGHBOUR = 3u;
const MERGE_PAIR = 4u;
const MERGE_COSINE = 5u;
const MERGE_NEXT_VALUES = 6u;
const MERGE_SEGMENTS = 7u;
override MERGE: u32 = MERGE_NEVER;

// Whether slots remember the partner that they would be merged with.
override PARTNERS: bool = false;

const KEY_ZIP = 0u;
const KEY_MIN_NORM = 1u;
const KEY_REAL_VOTES = 2u;
const KEY_CONVEX = 3u;
override KEY_FORM: u32 = KEY_CONVEX;
override THRESHOLD: f32 = 1.0;
override GUARD_LOW: f32 = 0.0;
override GUARD_HIGH: f32 = 0.0;

// Whether a right neighbour's value keeps the output of the current row, and
// the largest ratio of attention weights that this applies.
override EXACT_VALUES: bool = false;
override RATIO_CAP: f32 = 1.0;
