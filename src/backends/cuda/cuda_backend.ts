/**
 * The CUDA backend: kernels in `cuda`, weights and cache in 16-bit floats, or the
 * cache in bfloat16, sums in 32-bit floats, programs as CUDA graphs.
 *
 * @module
 */
import { DeviceLostError, KernelError } from "../../errors.ts";
import type { Precision } from "../../policies/parts.ts";
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
import { checkRange, countRows } from "../ranges.ts";
import {
  CudaBuffer,
  CudaMatrix,
  type CudaMemory,
  elementBytes,
} from "./buffers.ts";
import { describeDevice } from "./device_info.ts";
import { recordingKernels } from "./kernels.ts";
import { type CudaLibrary, errorOf } from "./library.ts";
import { CudaProgram } from "./program.ts";
import { layouts, packStruct } from "./structs.ts";
import {
  CHECK_EVERY_KERNEL,
  type CudaSymbols,
  Element,
  OWN_PRODUCTS,
  Status,
} from "./symbols.ts";

/** The smallest numbers that rounding takes to infinity. */
const INFINITE: Readonly<Record<Precision["kind"], number>> = {
  half: 65520,
  bfloat16: 2 ** 128 - 2 ** 119,
};

/** Runs kernels on an NVIDIA GPU. */
export class CudaBackend implements Backend {
  readonly name = "cuda";
  readonly description: string;
  readonly halfBytes = 2;
  readonly precision: Precision["kind"];
  readonly stepsPerRead = 16;
  readonly #library: CudaLibrary;
  readonly #symbols: CudaSymbols;
  readonly #context: Deno.PointerObject;
  /** Waits that are under way: the library must outlive them. */
  readonly #waits = new Set<Promise<unknown>>();
  #bytes = 0;
  #open = true;
  /** What made the device unusable. */
  #fault: Error | undefined;

  readonly #memory: CudaMemory = {
    allocate: (label, bytes) => {
      const address = new BigUint64Array(1);
      this.#check(
        this.#symbols.skv_allocate(this.#context, BigInt(bytes), address),
        `allocate ${label} of ${bytes} bytes`,
      );
      this.#bytes += bytes;
      return Number(address[0]);
    },
    free: (address, bytes) => {
      this.#bytes -= bytes;
      // Closing has freed everything; after a fault the driver will.
      if (this.#open) this.#symbols.skv_free(this.#context, BigInt(address));
    },
  };

  /**
   * Opens a device. The backend closes the library in the end.
   *
   * @throws {BackendUnavailableError} If the library cannot use the device.
   */
  static open(
    library: CudaLibrary,
    { device, checkEveryKernel, ownProducts }: {
      device: number;
      checkEveryKernel: boolean;
      ownProducts: boolean;
    },
  ): CudaBackend {
    const context = new BigUint64Array(1);
    const flags = (checkEveryKernel ? CHECK_EVERY_KERNEL : 0) |
      (ownProducts ? OWN_PRODUCTS : 0);
    const status = library.symbols.skv_open(device, flags, context);
    const pointer = Deno.UnsafePointer.create(context[0]!);
    if (status !== 0 || pointer === null) {
      throw errorOf(status, library.lastError(null), `open GPU ${device}`);
    }
    try {
      return new CudaBackend(library, pointer);
    } catch (error) {
      library.symbols.skv_close(pointer);
      throw error;
    }
  }

  private constructor(library: CudaLibrary, context: Deno.PointerObject) {
    this.#library = library;
    this.#symbols = library.symbols;
    this.#context = context;
    this.precision = library.precision;
    const device = describeDevice((info) =>
      this.#check(
        this.#symbols.skv_describe(context, info),
        "describe the GPU",
      )
    );
    this.description = this.precision === "half"
      ? device
      : `${device}, ${this.precision} caches`;
  }

  get bytesAllocated(): number {
    return this.#bytes;
  }

  /** Throws the exception of a status, and remembers what cannot be undone. */
  readonly #check = (status: number, doing: string): void => {
    if (status === 0) return;
    const error = errorOf(
      status,
      this.#library.lastError(this.#context),
      doing,
    );
    if (error instanceof KernelError || error instanceof DeviceLostError) {
      this.#fault ??= error;
    }
    throw error;
  };

  #checkUsable(): void {
    if (!this.#open) {
      throw new TypeError("Cannot use the CUDA backend: it was disposed");
    }
    if (this.#fault !== undefined) throw this.#fault;
  }

  /**
   * Allocates a zeroed buffer.
   *
   * @throws {RangeError} If the device has not enough memory.
   */
  allocate(label: string, type: ElementType, length: number): DeviceBuffer {
    this.#checkUsable();
    return new CudaBuffer(this.#memory, { label, type, length });
  }

  /**
   * Allocates a zeroed matrix, in one piece.
   *
   * @throws {RangeError} If the device has not enough memory.
   */
  allocateMatrix(label: string, { rows, columns }: MatrixShape): DeviceMatrix {
    this.#checkUsable();
    return new CudaMatrix(this.#memory, { label, rows, columns });
  }

  /**
   * Writes to a buffer.
   *
   * @throws {RangeError} If the data does not fit, or a value does not fit in
   * what caches hold.
   */
  write(
    buffer: DeviceBuffer,
    data: Float32Array | Uint32Array,
    offset = 0,
  ): void {
    this.#checkUsable();
    const { address, type, length, label } = buffer as CudaBuffer;
    const end = offset + data.length;
    if (offset < 0 || end > length) {
      throw new RangeError(
        `Cannot write elements ${offset} to ${end} of ${label}: it has ${length}`,
      );
    }
    if (data.length === 0) return;
    if (type !== "half") {
      const bytes = new Uint8Array(
        data.buffer as ArrayBuffer,
        data.byteOffset,
        data.byteLength,
      );
      this.#check(
        this.#symbols.skv_write(
          this.#context,
          BigInt(address + offset * 4),
          bytes,
          BigInt(bytes.length),
        ),
        `write to ${label}`,
      );
      return;
    }
    if (data instanceof Uint32Array) {
      throw new TypeError(`Cannot write words to ${label}: it holds halves`);
    }
    this.#writeRows(data, { address, label, element: Element.cached }, {
      offset,
      rows: 1,
      columns: data.length,
      pitch: data.length,
    });
  }

  #writeRows(
    data: Float32Array,
    { address, label, element }: {
      address: number;
      label: string;
      element: number;
    },
    rows: { offset: number; rows: number; columns: number; pitch: number },
  ): void {
    const status = this.#symbols.skv_write_rows(
      this.#context,
      BigInt(address),
      data as Float32Array<ArrayBuffer>,
      packStruct(layouts.rows, rows),
      element,
    );
    const most = INFINITE[element === Element.cached ? this.precision : "half"];
    const wrong = status === Status.tooLarge
      ? data.find((x) => !(Math.abs(x) < most))
      : undefined;
    this.#check(
      status,
      wrong === undefined ? `write to ${label}` : `write ${wrong} to ${label}`,
    );
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
    this.#checkUsable();
    const { columns, pitch, address, label } = matrix as CudaMatrix;
    const rows = countRows(matrix, data.length, { firstRow, rowStep });
    if (rows === 0) return;
    this.#writeRows(data, { address, label, element: Element.half }, {
      offset: firstRow * pitch,
      rows,
      columns,
      pitch: rowStep * pitch,
    });
  }

  async read(
    buffer: DeviceBuffer,
    offset = 0,
    length: number = buffer.length - offset,
  ): Promise<HostTensor> {
    this.#checkUsable();
    const { address, type, label } = buffer as CudaBuffer;
    checkRange(buffer, offset, length);
    const ticket = new Uint32Array(1);
    this.#check(
      this.#symbols.skv_read(
        this.#context,
        BigInt(address + offset * elementBytes(type)),
        BigInt(length),
        type === "half" ? Element.cached : Element.word,
        ticket,
      ),
      `read ${label}`,
    );
    const f32 = new Float32Array(length);
    const wait = this.#symbols.skv_wait(
      this.#context,
      ticket[0]!,
      f32,
      BigInt(f32.byteLength),
    );
    this.#waits.add(wait);
    try {
      this.#check(await wait, `read ${label}`);
    } finally {
      this.#waits.delete(wait);
    }
    return { f32, u32: new Uint32Array(f32.buffer) };
  }

  record(label: string, body: (kernels: Kernels) => void): Program {
    this.#checkUsable();
    const doing = `record program ${label}`;
    const started = new BigUint64Array(1);
    this.#check(
      this.#symbols.skv_begin_record(this.#context, started),
      doing,
    );
    const program = Deno.UnsafePointer.create(started[0]!)!;
    try {
      body(recordingKernels((kernel, args) =>
        this.#check(
          this.#symbols[kernel](program, args, BigInt(args.length)),
          doing,
        )
      ));
      const scratch = new BigUint64Array(1);
      const status = this.#symbols.skv_end_record(program, scratch);
      const bytes = Number(scratch[0]);
      this.#check(
        status,
        status === Status.outOfMemory
          ? `${doing}, which works in ${bytes} bytes`
          : doing,
      );
      this.#bytes += bytes;
      return new CudaProgram(label, {
        run: (times) => {
          this.#checkUsable();
          this.#check(
            this.#symbols.skv_run(program, times),
            `run program ${label}`,
          );
        },
        dispose: () => {
          this.#bytes -= bytes;
          if (this.#open) this.#symbols.skv_dispose(program);
        },
      });
    } catch (error) {
      this.#symbols.skv_dispose(program);
      throw error;
    }
  }

  /**
   * Fills a matrix with normal numbers on the device: weights for measurements
   * at sizes that would take minutes to draw on the host.
   */
  fillNormal(
    matrix: DeviceMatrix,
    { deviation, seed }: { deviation: number; seed: number },
  ): void {
    this.#checkUsable();
    const { address, rows, columns, pitch, label } = matrix as CudaMatrix;
    this.#check(
      this.#symbols.skv_fill_normal(
        this.#context,
        BigInt(address),
        packStruct(layouts.rows, { offset: 0, rows, columns, pitch }),
        deviation,
        BigInt(seed),
      ),
      `fill ${label}`,
    );
  }

  /** Bytes a second that the device reads from its memory at most. */
  measureRead(bytes: number, times: number): number {
    this.#checkUsable();
    const speed = new Float64Array(1);
    this.#check(
      this.#symbols.skv_measure_read(
        this.#context,
        BigInt(bytes),
        times,
        speed,
      ),
      "measure the memory",
    );
    return speed[0]!;
  }

  /** Waits for pending reads, and frees everything. */
  async [Symbol.asyncDispose](): Promise<void> {
    if (!this.#open) return;
    await Promise.allSettled(this.#waits);
    this.#open = false;
    this.#symbols.skv_close(this.#context);
    this.#library.close();
  }
}
