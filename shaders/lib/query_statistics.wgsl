// Where the statistics of query heads are: see `queryStatisticsLayout` of the
// backends.

// First float of a query head.
fn statistics_at(sequence: u32, query_head: u32) -> u32 {
  return (sequence * HEADS + query_head) * (3u * HEAD_DIM + 1u);
}

fn scatter_at() -> u32 {
  return HEAD_DIM;
}

fn future_at() -> u32 {
  return HEAD_DIM / 2u * 3u;
}

fn variance_at() -> u32 {
  return HEAD_DIM / 2u * 5u;
}

fn count_at() -> u32 {
  return HEAD_DIM * 3u;
}
