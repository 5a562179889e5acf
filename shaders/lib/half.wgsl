// Halves: 16-bit floats, two to a 32-bit word. Packing and unpacking are core
// WGSL, so kernels need no shader-f16; they compute in 32 bits.

// Largest finite half. A larger number would be stored as infinity.
const HALF_MAX = 65504.0;

fn pack_halves(pair: vec2<f32>) -> u32 {
  return pack2x16float(clamp(pair, vec2(-HALF_MAX), vec2(HALF_MAX)));
}

fn unpack_halves(word: u32) -> vec2<f32> {
  return unpack2x16float(word);
}

// Dot product of eight halves with eight floats.
fn dot_halves(words: vec4<u32>, low: vec4<f32>, high: vec4<f32>) -> f32 {
  let a = vec4(unpack_halves(words.x), unpack_halves(words.y));
  let b = vec4(unpack_halves(words.z), unpack_halves(words.w));
  return dot(a, low) + dot(b, high);
}
