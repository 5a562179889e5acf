/**
 * Buffers that results are read through, kept for the next read.
 *
 * @module
 */

/** Unused buffers that are kept. */
const KEPT = 32;

/** Buffers larger than this are not kept. */
const KEPT_BYTES = 1 << 22;

/** Lends staging buffers. Several may be out at the same time. */
export class StagingPool {
  readonly #device: GPUDevice;
  readonly #account: (bytes: number) => void;
  readonly #free: GPUBuffer[] = [];

  /** Constructs an empty pool that reports the bytes it holds. */
  constructor(device: GPUDevice, account: (bytes: number) => void) {
    this.#device = device;
    this.#account = account;
  }

  /** Lends a buffer of at least `bytes` bytes. */
  acquire(bytes: number): GPUBuffer {
    // Powers of two, so that reads of about the same size share buffers.
    const size = Math.max(256, 2 ** Math.ceil(Math.log2(bytes)));
    const index = this.#free.findIndex((buffer) => buffer.size === size);
    if (index >= 0) return this.#free.splice(index, 1)[0]!;
    this.#account(size);
    return this.#device.createBuffer({
      label: "staging",
      size,
      usage: GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST,
    });
  }

  /** Takes a buffer back that is no longer mapped. */
  release(buffer: GPUBuffer): void {
    if (this.#free.length < KEPT && buffer.size <= KEPT_BYTES) {
      this.#free.push(buffer);
    } else this.discard(buffer);
  }

  /** Destroys a buffer that was lent. */
  discard(buffer: GPUBuffer): void {
    this.#account(-buffer.size);
    buffer.destroy();
  }
}
