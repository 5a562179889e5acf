/**
 * A look at what an engine computes on the way.
 *
 * An engine offers ids, probabilities and the cache. Measurements of attention
 * also need the queries of every layer, and comparisons of distributions the
 * logits of a decode step. Both are in buffers that the engine allocates from
 * its backend, so a backend that remembers its buffers makes them readable on
 * any device, and the engine does not have to know.
 *
 * @module
 */
import type {
  Backend,
  BackendName,
  DeviceBuffer,
  DeviceMatrix,
  ElementType,
  HostTensor,
  Kernels,
  MatrixShape,
  Program,
  WriteRowsOptions,
} from "../backends/backend.ts";
import type { Precision } from "../policies/parts.ts";

/** What a kernel that takes queries is called with. */
interface QueryArguments {
  readonly queries: DeviceBuffer;
  readonly cache: { readonly layer: number };
}

/** A backend that remembers the buffers that were allocated from it. */
export class TappedBackend implements Backend {
  readonly #inner: Backend;
  readonly #buffers = new Map<string, DeviceBuffer>();
  readonly #queries = new Map<number, DeviceBuffer>();
  readonly #tapQueries: boolean;

  /**
   * Constructs a new instance in front of `inner`, which the caller disposes.
   *
   * @param queries Whether each layer gets a buffer of its own for queries;
   * without it all layers share one, as the engine has it.
   */
  constructor(inner: Backend, { queries }: { queries: boolean }) {
    this.#inner = inner;
    this.#tapQueries = queries;
  }

  /** See {@link Backend.name}. */
  get name(): BackendName {
    return this.#inner.name;
  }

  /** See {@link Backend.description}. */
  get description(): string {
    return this.#inner.description;
  }

  /** See {@link Backend.halfBytes}. */
  get halfBytes(): 2 | 4 {
    return this.#inner.halfBytes;
  }

  /** See {@link Backend.precision}. */
  get precision(): Precision["kind"] {
    return this.#inner.precision;
  }

  /** See {@link Backend.stepsPerRead}. */
  get stepsPerRead(): number {
    return this.#inner.stepsPerRead;
  }

  /** See {@link Backend.bytesAllocated}. */
  get bytesAllocated(): number {
    return this.#inner.bytesAllocated;
  }

  /** Allocates a buffer and remembers it by its label. */
  allocate(label: string, type: ElementType, length: number): DeviceBuffer {
    const buffer = this.#inner.allocate(label, type, length);
    this.#buffers.set(label, buffer);
    return buffer;
  }

  /** See {@link Backend.allocateMatrix}. */
  allocateMatrix(label: string, shape: MatrixShape): DeviceMatrix {
    return this.#inner.allocateMatrix(label, shape);
  }

  /** See {@link Backend.write}. */
  write(
    buffer: DeviceBuffer,
    data: Float32Array | Uint32Array,
    offset?: number,
  ): void {
    this.#inner.write(buffer, data, offset);
  }

  /** See {@link Backend.writeRows}. */
  writeRows(
    matrix: DeviceMatrix,
    data: Float32Array,
    options: WriteRowsOptions,
  ): void {
    this.#inner.writeRows(matrix, data, options);
  }

  /** See {@link Backend.read}. */
  read(
    buffer: DeviceBuffer,
    offset?: number,
    length?: number,
  ): Promise<HostTensor> {
    return this.#inner.read(buffer, offset, length);
  }

  /** Records a program in which each layer has its own queries. */
  record(label: string, body: (kernels: Kernels) => void): Program {
    return this.#inner.record(
      label,
      this.#tapQueries ? (kernels) => body(this.#tap(kernels)) : body,
    );
  }

  /**
   * Reads a buffer by the label that it was allocated with.
   *
   * @throws {RangeError} If no buffer has the label.
   */
  async readLabelled(label: string, length?: number): Promise<Float32Array> {
    const buffer = this.#buffers.get(label);
    if (buffer === undefined) {
      throw new RangeError(
        `Cannot read buffer "${label}": expected one of ${
          [...this.#buffers.keys()].join(", ")
        }`,
      );
    }
    return (await this.#inner.read(buffer, 0, length)).f32;
  }

  /** Reads `length` values of the queries of a layer, of the last step. */
  async readQueries(layer: number, length: number): Promise<Float32Array> {
    const buffer = this.#queries.get(layer);
    if (buffer === undefined) {
      throw new RangeError(
        `Cannot read the queries of layer ${layer}: expected a step that ran, and a tap of queries`,
      );
    }
    return (await this.#inner.read(buffer, 0, length)).f32;
  }

  /** Kernels that take the queries of their layer instead of the shared ones. */
  #tap(kernels: Kernels): Kernels {
    return new Proxy(kernels, {
      get: (target, name) => {
        const kernel = Reflect.get(target, name) as (args: object) => void;
        return (args: object) => kernel.call(target, this.#withQueries(args));
      },
    });
  }

  #withQueries(args: object): object {
    if (!("queries" in args && "cache" in args)) return args;
    const { queries, cache: { layer } } = args as QueryArguments;
    let own = this.#queries.get(layer);
    if (own === undefined) {
      own = this.#inner.allocate(
        `queries of layer ${layer}`,
        queries.type,
        queries.length,
      );
      this.#queries.set(layer, own);
    }
    return { ...args, queries: own };
  }

  /** Frees the buffers of queries; the engine frees its own. */
  [Symbol.asyncDispose](): Promise<void> {
    for (const buffer of this.#queries.values()) buffer[Symbol.dispose]();
    this.#queries.clear();
    this.#buffers.clear();
    return Promise.resolve();
  }
}
