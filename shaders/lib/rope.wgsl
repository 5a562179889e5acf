// Angles of rotary position embeddings: see `src/model/rope.ts`. A kernel
// declares `rope`, (3, 256, headDim / 2) of cosine and sine.

// The angle of a pair at a position: the product of the rotations of its three
// base-256 digits.
fn angle_at(index: u32, position: u32) -> vec2<f32> {
  let half = HEAD_DIM / 2u;
  var angle = rope[(position & 255u) * half + index];
  for (var level = 1u; level < 3u; level++) {
    let digit = (position >> (8u * level)) & 255u;
    angle = turn(angle, rope[(level * 256u + digit) * half + index]);
  }
  return angle;
}

// The product of two complex numbers: a pair, turned by an angle.
fn turn(pair: vec2<f32>, angle: vec2<f32>) -> vec2<f32> {
  return vec2(
    pair.x * angle.x - pair.y * angle.y,
    pair.y * angle.x + pair.x * angle.y,
  );
}
