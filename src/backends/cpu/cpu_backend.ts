/**
 * The CPU backend: the reference functions, called in the recorded order.
 *
 * It needs no GPU, no permission and no dependency, and stores everything as
 * 32-bit floats.
 *
 * @module
 */
import { compress } from "../../reference/compress.ts";
import { embed } from "../../reference/embed.ts";
import { gateUp } from "../../reference/gate_up.ts";
import type { HostMatrix } from "../../reference/host.ts";
import { lmHead } from "../../reference/lm_head.ts";
import { mergeAttend } from "../../reference/merge_attend.ts";
import { observe } from "../../reference/observe.ts";
import { prefillAttend } from "../../reference/prefill_attend.ts";
import { projectAdd } from "../../reference/project_add.ts";
import { queryStatistics } from "../../reference/query_statistics.ts";
import { qkvRopeAppend } from "../../reference/qkv_rope_append.ts";
import { sample } from "../../reference/sample.ts";
import { valueNorms } from "../../reference/value_norms.ts";
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

/** The reference functions under the names of the kernels. */
const reference: Kernels<HostTensor, HostMatrix> = {
  embed,
  qkvRopeAppend,
  valueNorms,
  queryStatistics,
  mergeAttend,
  prefillAttend,
  observe,
  compress,
  projectAdd,
  gateUp,
  lmHead,
  sample,
};

/** Runs the reference functions on the host. */
export class CpuBackend implements Backend {
  readonly name = "cpu";
  readonly description: string = "reference functions, 32-bit floats, 1 thread";
  readonly halfBytes = 4;
  readonly precision = "half";
  readonly stepsPerRead = 1;
  #bytes = 0;

  get bytesAllocated(): number {
    return this.#bytes;
  }

  allocate(label: string, type: ElementType, length: number): DeviceBuffer {
    return new CpuBuffer({ label, type, length, account: this.#account });
  }

  allocateMatrix(label: string, { rows, columns }: MatrixShape): DeviceMatrix {
    return new CpuMatrix({ label, rows, columns, account: this.#account });
  }

  readonly #account = (bytes: number): void => {
    this.#bytes += bytes;
  };

  write(
    buffer: DeviceBuffer,
    data: Float32Array | Uint32Array,
    offset = 0,
  ): void {
    const { f32, u32 } = buffer as CpuBuffer;
    if (data instanceof Float32Array) f32.set(data, offset);
    else u32.set(data, offset);
  }

  writeRows(
    matrix: DeviceMatrix,
    data: Float32Array,
    { firstRow, rowStep = 1 }: WriteRowsOptions,
  ): void {
    const { columns, f32 } = matrix as CpuMatrix;
    for (let row = 0; row * columns < data.length; row++) {
      f32.set(
        data.subarray(row * columns, (row + 1) * columns),
        (firstRow + row * rowStep) * columns,
      );
    }
  }

  /** Copies, so that later steps cannot change what was read. */
  read(
    buffer: DeviceBuffer,
    offset = 0,
    length: number = buffer.length - offset,
  ): Promise<HostTensor> {
    const f32 = (buffer as CpuBuffer).f32.slice(offset, offset + length);
    return Promise.resolve({ f32, u32: new Uint32Array(f32.buffer) });
  }

  record(label: string, body: (kernels: Kernels) => void): Program {
    const calls: (() => void)[] = [];
    const recorder = Object.fromEntries(
      Object.entries(reference).map(([name, kernel]) => [
        name,
        (args: never) => calls.push(() => kernel(args)),
      ]),
    );
    // Buffers and matrices of this backend are host tensors themselves.
    body(recorder as unknown as Kernels);
    return {
      label,
      run(times = 1): void {
        for (let i = 0; i < times; i++) for (const call of calls) call();
      },
      [Symbol.dispose](): void {
        calls.length = 0;
      },
    };
  }

  /** Nothing is held outside the buffers. */
  async [Symbol.asyncDispose](): Promise<void> {}
}

/** How memory is reported to the backend. */
type Account = (bytes: number) => void;

class CpuBuffer implements DeviceBuffer, HostTensor {
  readonly label: string;
  readonly type: ElementType;
  readonly length: number;
  f32: Float32Array;
  u32: Uint32Array;
  readonly #account: Account;

  constructor(
    { label, type, length, account }: {
      label: string;
      type: ElementType;
      length: number;
      account: Account;
    },
  ) {
    this.label = label;
    this.type = type;
    this.length = length;
    this.f32 = new Float32Array(length);
    this.u32 = new Uint32Array(this.f32.buffer);
    this.#account = account;
    account(this.byteLength);
  }

  get byteLength(): number {
    return this.f32.byteLength;
  }

  [Symbol.dispose](): void {
    this.#account(-this.byteLength);
    this.f32 = new Float32Array();
    this.u32 = new Uint32Array();
  }
}

class CpuMatrix implements DeviceMatrix, HostMatrix {
  readonly label: string;
  readonly rows: number;
  readonly columns: number;
  f32: Float32Array;
  readonly #account: Account;

  constructor(
    { label, rows, columns, account }: {
      label: string;
      rows: number;
      columns: number;
      account: Account;
    },
  ) {
    this.label = label;
    this.rows = rows;
    this.columns = columns;
    this.f32 = new Float32Array(rows * columns);
    this.#account = account;
    account(this.byteLength);
  }

  get byteLength(): number {
    return this.f32.byteLength;
  }

  [Symbol.dispose](): void {
    this.#account(-this.byteLength);
    this.f32 = new Float32Array();
  }
}
