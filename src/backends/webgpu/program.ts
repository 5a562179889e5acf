import { KernelError } from "../../errors.ts";
import type { Program } from "../backend.ts";
import type { BufferFactory } from "./buffers.ts";
import type { DeviceMonitor } from "./device_monitor.ts";
import type { Recording } from "./recorder.ts";

/**
 * Dispatches in one command buffer. Enough to make the cost of submitting
 * small, and few enough that the device starts early.
 */
const BATCH = 1024;

/** A recorded program of a WebGPU device. */
export class WebGpuProgram implements Program {
  readonly label: string;
  readonly #device: GPUDevice;
  readonly #monitor: DeviceMonitor;
  readonly #factory: BufferFactory;
  #recording: Recording | undefined;
  #ran = false;

  /** Constructs a program that owns the buffers of `recording`. */
  constructor(
    label: string,
    { device, monitor, factory, recording }: {
      device: GPUDevice;
      monitor: DeviceMonitor;
      factory: BufferFactory;
      recording: Recording;
    },
  ) {
    this.label = label;
    this.#device = device;
    this.#monitor = monitor;
    this.#factory = factory;
    this.#recording = recording;
  }

  run(times = 1): void {
    this.#monitor.check();
    const recording = this.#recording;
    if (recording === undefined) {
      throw new TypeError(
        `Cannot run program ${this.label}: it was disposed`,
      );
    }
    const steps = Math.max(
      1,
      Math.floor(BATCH / Math.max(1, recording.dispatches.length)),
    );
    const submit = (count: number) => this.#submit(recording, count);
    for (let left = times; left > 0; left -= steps) {
      const count = Math.min(left, steps);
      if (this.#ran) submit(count);
      else {
        // The same commands are as valid later as they are the first time.
        this.#monitor.watch(
          () => submit(count),
          (message) => new KernelError(`of program ${this.label}`, message),
        );
        this.#ran = true;
      }
    }
  }

  #submit({ dispatches }: Recording, times: number): void {
    const encoder = this.#device.createCommandEncoder({ label: this.label });
    for (let i = 0; i < times; i++) {
      const pass = encoder.beginComputePass();
      for (const { pipeline, bindGroup, workgroups } of dispatches) {
        pass.setPipeline(pipeline);
        pass.setBindGroup(0, bindGroup);
        pass.dispatchWorkgroups(...workgroups);
      }
      pass.end();
    }
    this.#device.queue.submit([encoder.finish()]);
  }

  [Symbol.dispose](): void {
    for (const buffer of this.#recording?.buffers ?? []) {
      this.#factory.destroy(buffer);
    }
    this.#recording = undefined;
  }
}
