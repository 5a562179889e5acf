/**
 * Collects what goes wrong on a device. WebGPU reports errors later than the
 * call that caused them, so they are kept here until a read asks.
 *
 * @module
 */
import { DeviceLostError, KernelError } from "../../errors.ts";

/** Watches one device for errors and for its loss. */
export class DeviceMonitor {
  readonly #device: GPUDevice;
  #fault: Error | undefined;
  #loss: DeviceLostError | undefined;
  readonly #pending = new Set<Promise<void>>();
  readonly #waiting = new Set<(error: DeviceLostError) => void>();

  /** Starts to watch `device`. */
  constructor(device: GPUDevice) {
    this.#device = device;
    device.addEventListener("uncapturederror", (event) => {
      const { message } = (event as GPUUncapturedErrorEvent).error;
      this.report(new KernelError("of an earlier program", message));
    });
    device.lost.then(({ message, reason }) => {
      this.#loss = new DeviceLostError(message || String(reason));
      for (const reject of this.#waiting) reject(this.#loss);
      this.#waiting.clear();
    });
  }

  /** Keeps an error for the next read; the first one counts. */
  report(error: Error): void {
    this.#fault ??= error;
  }

  /**
   * Calls `body` and keeps what WebGPU finds wrong in it as the error that
   * `describe` makes of its message.
   */
  watch<T>(body: () => T, describe: (message: string) => Error): T {
    this.#device.pushErrorScope("out-of-memory");
    this.#device.pushErrorScope("validation");
    try {
      return body();
    } finally {
      this.#collect(describe);
      this.#collect(describe);
    }
  }

  #collect(describe: (message: string) => Error): void {
    const pending = this.#device.popErrorScope().then(
      (error) => {
        if (error !== null) this.report(describe(error.message));
      },
      // A lost device has no scopes; its loss is reported on its own.
      () => {},
    ).finally(() => this.#pending.delete(pending));
    this.#pending.add(pending);
  }

  /** Throws if the device was lost or something is known to be wrong. */
  check(): void {
    if (this.#loss !== undefined) throw this.#loss;
    if (this.#fault !== undefined) throw this.#fault;
  }

  /** Waits for all errors of calls made so far, then does {@link check}. */
  async settle(): Promise<void> {
    await Promise.all(this.#pending);
    this.check();
  }

  /** `work`, or a rejection as soon as the device is lost. */
  orLost<T>(work: Promise<T>): Promise<T> {
    if (this.#loss !== undefined) return Promise.reject(this.#loss);
    const { promise, resolve, reject } = Promise.withResolvers<T>();
    this.#waiting.add(reject);
    work.then(resolve, reject);
    return promise.finally(() => this.#waiting.delete(reject));
  }
}
