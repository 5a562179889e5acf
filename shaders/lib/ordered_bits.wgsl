// Bits of a float that sort like the float.
fn ordered(value: f32) -> u32 {
  // Both zeros are the same number.
  let bits = bitcast<u32>(select(value, 0.0, value == 0.0));
  return select(bits | 0x80000000u, ~bits, (bits & 0x80000000u) != 0u);
}

// The float with these ordered bits.
fn unordered(bits: u32) -> f32 {
  return bitcast<f32>(select(~bits, bits ^ 0x80000000u, bits >= 0x80000000u));
}
