/**
 * The WebGPU backend: kernels in WGSL, weights and cache in 16-bit floats,
 * sums in 32-bit floats.
 *
 * Halves are packed two to a word and unpacked by core WGSL functions, so one
 * code path serves adapters with and without `shader-f16`.
 *
 * @module
 */
import { BackendUnavailableError } from "../../errors.ts";
import type {
  Backend,
  DeviceBuffer,
  DeviceMatrix,
  ElementType,
  HostTensor,
  Kernels,
  MatrixShape,
  Program,
  WriteRowsOptions,
} from "../backend.ts";
import { checkRange } from "../ranges.ts";
import { type BufferFactory, WebGpuBuffer, WebGpuMatrix } from "./buffers.ts";
import { DeviceMonitor } from "./device_monitor.ts";
import { forHalves } from "./half.ts";
import { recordingKernels } from "./kernels/mod.ts";
import { PipelineCache } from "./pipelines.ts";
import { describeAdapter, findAdapter, usedLimits } from "./probe.ts";
import { WebGpuProgram } from "./program.ts";
import { BufferReader } from "./reader.ts";
import { Recorder } from "./recorder.ts";
import { RowWriter } from "./row_writer.ts";
import { shaders } from "./shaders.generated.ts";

/** How to open a {@link WebGpuBackend}. */
export interface WebGpuOptions {
  /** Bytes that one buffer may have, where the adapter allows more. */
  readonly maxBufferBytes?: number;
  /** Bytes of a matrix that may lie in one buffer, where more would fit. */
  readonly maxBlockBytes?: number;
  /** WGSL files by path, in place of those of the package. */
  readonly shaders?: Readonly<Record<string, string>>;
}

/** Storage buffers that the kernel with the most of them binds. */
const STORAGE_BUFFERS = 16;

/** Bytes written between submissions, which let the staging memory go. */
const FLUSH_BYTES = 1 << 25;

/** Runs kernels on a GPU, or on a software adapter. */
export class WebGpuBackend implements Backend {
  readonly name = "webgpu";
  readonly description: string;
  readonly halfBytes = 2;
  readonly precision = "half";
  readonly stepsPerRead = 8;
  /** The device, for callers that share it. */
  readonly device: GPUDevice;
  readonly #monitor: DeviceMonitor;
  readonly #pipelines: PipelineCache;
  readonly #reader: BufferReader;
  readonly #rows: RowWriter;
  readonly #maxBytes: number;
  readonly #maxBlockBytes: number;
  #bytes = 0;
  #unflushed = 0;
  #open = true;

  readonly #factory: BufferFactory = {
    create: (label, bytes) => this.#createBuffer(label, bytes),
    destroy: (buffer) => {
      this.#bytes -= buffer.size;
      buffer.destroy();
    },
  };

  /**
   * Opens the device of the fastest adapter.
   *
   * @throws {BackendUnavailableError} If there is no adapter, or it lacks what
   * the kernels need.
   */
  static async open(options: WebGpuOptions = {}): Promise<WebGpuBackend> {
    const found = await findAdapter();
    if ("available" in found) {
      throw new BackendUnavailableError("webgpu", found);
    }
    const { adapter } = found;
    const buffers = adapter.limits.maxStorageBuffersPerShaderStage;
    if (buffers < STORAGE_BUFFERS) {
      throw new BackendUnavailableError("webgpu", {
        reason: `${
          describeAdapter(adapter)
        } binds at most ${buffers} storage buffers, but kernels need ${STORAGE_BUFFERS}`,
        remedy: "use another adapter or backend",
      });
    }
    let device: GPUDevice;
    try {
      device = await adapter.requestDevice({
        requiredLimits: Object.fromEntries(
          usedLimits.map((name) => [name, adapter.limits[name]]),
        ),
      });
    } catch (error) {
      throw new BackendUnavailableError("webgpu", {
        reason: `${describeAdapter(adapter)} gave no device: ${error}`,
        remedy: "update its driver",
      });
    }
    return new WebGpuBackend(device, describeAdapter(adapter), options);
  }

  private constructor(
    device: GPUDevice,
    description: string,
    options: WebGpuOptions,
  ) {
    this.device = device;
    this.description = description;
    this.#monitor = new DeviceMonitor(device);
    this.#pipelines = new PipelineCache(device, this.#monitor, {
      files: options.shaders ?? shaders,
    });
    this.#reader = new BufferReader(device, this.#monitor, {
      account: (bytes) => this.#bytes += bytes,
    });
    const { maxBufferSize, maxStorageBufferBindingSize } = device.limits;
    this.#maxBytes = Math.floor(
      Math.min(
        maxBufferSize,
        maxStorageBufferBindingSize,
        options.maxBufferBytes ?? Infinity,
      ) / 16,
    ) * 16;
    this.#maxBlockBytes = Math.min(
      this.#maxBytes,
      options.maxBlockBytes ?? Infinity,
    );
    this.#rows = new RowWriter(device, {
      factory: this.#factory,
      maxBytes: this.#maxBytes,
    });
  }

  get bytesAllocated(): number {
    return this.#bytes;
  }

  /**
   * Allocates a zeroed buffer.
   *
   * @throws {RangeError} If the device allows no buffer of that size.
   */
  allocate(label: string, type: ElementType, length: number): DeviceBuffer {
    this.#check();
    return new WebGpuBuffer(this.#factory, { label, type, length });
  }

  /**
   * Allocates a zeroed matrix, in blocks of rows where it is too large for one
   * buffer.
   *
   * @throws {RangeError} If its columns are not a multiple of 4, or one group
   * of rows is too large for a buffer.
   */
  allocateMatrix(
    label: string,
    { rows, columns, rowGroup = 1 }: MatrixShape,
  ): DeviceMatrix {
    this.#check();
    return new WebGpuMatrix(this.#factory, {
      label,
      rows,
      columns,
      rowGroup,
      maxBytes: this.#maxBlockBytes,
    });
  }

  #createBuffer(label: string, bytes: number): GPUBuffer {
    if (bytes > this.#maxBytes) {
      throw new RangeError(
        `Cannot allocate ${label} of ${bytes} bytes: the device allows ${this.#maxBytes} in a buffer`,
      );
    }
    const buffer = this.#monitor.watch(
      () =>
        this.device.createBuffer({
          label,
          size: bytes,
          usage: GPUBufferUsage.STORAGE | GPUBufferUsage.UNIFORM |
            GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST,
        }),
      (message) =>
        new RangeError(
          `Cannot allocate ${label} of ${bytes} bytes: ${message}`,
        ),
    );
    this.#bytes += bytes;
    return buffer;
  }

  /**
   * Writes to a buffer. Halves are written in pairs: `offset` is even, and so
   * is the end unless it is that of the buffer.
   *
   * @throws {RangeError} If the data does not fit, or a value does not fit in
   * a 16-bit float.
   */
  write(
    buffer: DeviceBuffer,
    data: Float32Array | Uint32Array,
    offset = 0,
  ): void {
    this.#check();
    const { gpu, type, length, label } = buffer as WebGpuBuffer;
    const end = offset + data.length;
    if (end > length) {
      throw new RangeError(
        `Cannot write elements ${offset} to ${end} of ${label}: it has ${length}`,
      );
    }
    if (type !== "half") {
      const { buffer, byteOffset, byteLength } = data;
      this.#writeBytes(gpu, offset * 4, { buffer, byteOffset, byteLength });
      return;
    }
    if (data instanceof Uint32Array) {
      throw new TypeError(`Cannot write words to ${label}: it holds halves`);
    }
    if (offset % 2 !== 0 || (end % 2 !== 0 && end !== length)) {
      throw new RangeError(
        `Cannot write elements ${offset} to ${end} of ${label}: halves are written in pairs`,
      );
    }
    forHalves(data, label, (piece, at) => {
      // The buffer has a whole number of words, and so does what is written.
      const words = new Uint8Array(Math.ceil(piece.length / 2) * 4);
      words.set(
        new Uint8Array(piece.buffer, piece.byteOffset, piece.byteLength),
      );
      this.#writeBytes(gpu, (offset + at) * 2, words);
    });
  }

  #writeBytes(
    target: GPUBuffer,
    offset: number,
    { buffer, byteOffset, byteLength }: {
      buffer: ArrayBufferLike;
      byteOffset: number;
      byteLength: number;
    },
  ): void {
    const bytes = new Uint8Array(buffer as ArrayBuffer, byteOffset, byteLength);
    this.device.queue.writeBuffer(target, offset, bytes);
    this.#unflushed += byteLength;
    if (this.#unflushed < FLUSH_BYTES) return;
    this.device.queue.submit([]);
    this.#unflushed = 0;
  }

  /**
   * Writes whole rows of a matrix.
   *
   * @throws {RangeError} If the data is not a whole number of rows inside the
   * matrix, or a value does not fit in a 16-bit float.
   */
  writeRows(
    matrix: DeviceMatrix,
    data: Float32Array,
    { firstRow, rowStep = 1 }: WriteRowsOptions,
  ): void {
    this.#check();
    this.#rows.write(matrix as WebGpuMatrix, data, { firstRow, rowStep });
  }

  async read(
    buffer: DeviceBuffer,
    offset = 0,
    length: number = buffer.length - offset,
  ): Promise<HostTensor> {
    this.#check();
    const { gpu, type, label } = buffer as WebGpuBuffer;
    checkRange(buffer, offset, length);
    this.#unflushed = 0;
    return await this.#reader.read(gpu, { label, type, offset, length });
  }

  record(label: string, body: (kernels: Kernels) => void): Program {
    this.#check();
    const recorder = new Recorder(this.device, {
      pipelines: this.#pipelines,
      factory: this.#factory,
    });
    body(recordingKernels(recorder));
    return new WebGpuProgram(label, {
      device: this.device,
      monitor: this.#monitor,
      factory: this.#factory,
      recording: recorder.finish(label),
    });
  }

  #check(): void {
    if (!this.#open) {
      throw new TypeError("Cannot use the WebGPU backend: it was disposed");
    }
    this.#monitor.check();
  }

  /** Gives the device back; reads that are still pending reject. */
  async [Symbol.asyncDispose](): Promise<void> {
    if (!this.#open) return;
    this.#open = false;
    this.device.destroy();
    await this.device.lost;
  }
}
