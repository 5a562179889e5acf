import type { ElementType, HostTensor } from "../backend.ts";
import { type Account, elementsPerWord } from "./buffers.ts";
import type { DeviceMonitor } from "./device_monitor.ts";
import { StagingPool } from "./staging.ts";

/** Which elements of a buffer to read. */
export interface ReadRange {
  /** What the buffer is for. */
  readonly label: string;
  readonly type: ElementType;
  /** First element. */
  readonly offset: number;
  /** Number of elements. */
  readonly length: number;
}

/**
 * Reads buffers. The copy is enqueued at once; the wait for it, which the
 * runtime makes at least 10 ms long, can overlap with that of other reads.
 */
export class BufferReader {
  readonly #device: GPUDevice;
  readonly #monitor: DeviceMonitor;
  readonly #staging: StagingPool;

  /** Constructs a reader that reports the staging memory it holds. */
  constructor(
    device: GPUDevice,
    monitor: DeviceMonitor,
    { account }: { account: Account },
  ) {
    this.#device = device;
    this.#monitor = monitor;
    this.#staging = new StagingPool(device, account);
  }

  /** Copies elements to the host once everything enqueued before is done. */
  async read(gpu: GPUBuffer, range: ReadRange): Promise<HostTensor> {
    const { label, type, offset, length } = range;
    const perWord = elementsPerWord(type);
    const firstWord = Math.floor(offset / perWord);
    const endWord = Math.ceil((offset + length) / perWord);
    const bytes = Math.max(1, endWord - firstWord) * 4;
    const staging = this.#staging.acquire(bytes);
    try {
      const encoder = this.#device.createCommandEncoder({ label });
      // An empty range may lie at the end of the buffer: read its last word.
      const from = Math.min(firstWord * 4, gpu.size - bytes);
      encoder.copyBufferToBuffer(gpu, from, staging, 0, bytes);
      this.#device.queue.submit([encoder.finish()]);
      const mapped = staging.mapAsync(GPUMapMode.READ, 0, bytes);
      await this.#monitor.orLost(mapped);
      await this.#monitor.settle();
      const copy = staging.getMappedRange(0, bytes).slice(0);
      staging.unmap();
      this.#staging.release(staging);
      return toTensor(copy, { type, skip: offset % perWord, length });
    } catch (error) {
      this.#staging.discard(staging);
      throw error;
    }
  }
}

function toTensor(
  bytes: ArrayBuffer,
  { type, skip, length }: { type: ElementType; skip: number; length: number },
): HostTensor {
  const f32 = type === "half"
    ? new Float32Array(new Float16Array(bytes).subarray(skip, skip + length))
    : new Float32Array(bytes, 0, length);
  return { f32, u32: new Uint32Array(f32.buffer, 0, length) };
}
