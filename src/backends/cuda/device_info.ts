/** Bytes of `skv_device_info`: 24 of numbers, then the name. */
const INFO_BYTES = 24 + 64;

/** Describes a device; `fill` writes its `skv_device_info`. */
export function describeDevice(
  fill: (info: Uint8Array<ArrayBuffer>) => void,
): string {
  const info = new Uint8Array(INFO_BYTES);
  fill(info);
  const view = new DataView(info.buffer);
  const capability = view.getUint32(12, true) / 10;
  const runtime = view.getUint32(16, true);
  const name = info.subarray(24, info.indexOf(0, 24));
  return `${new TextDecoder().decode(name)}, compute capability ${
    capability.toFixed(1)
  }, CUDA ${Math.floor(runtime / 1000)}.${Math.floor(runtime % 1000 / 10)}`;
}
