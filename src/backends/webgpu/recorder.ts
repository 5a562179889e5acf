/**
 * Records the dispatches of a program.
 *
 * Kernels describe dispatches by the names that their shaders declare. When
 * the recording ends, pipelines, bind groups, parameters and scratch memory
 * are made once; running the program only encodes.
 *
 * @module
 */
import type { DeviceBuffer } from "../backend.ts";
import { type BufferFactory, WebGpuBuffer } from "./buffers.ts";
import type { Constants, KernelPipeline, PipelineCache } from "./pipelines.ts";
import type { Binding, ParamField } from "./shader_source.ts";

/** Memory that only lives between the dispatches of one program. */
export class Scratch {
  /** What it holds. */
  readonly label: string;
  /** Bytes that the largest user wants. */
  bytes = 16;

  /** Constructs scratch memory of the smallest size. */
  constructor(label: string) {
    this.label = label;
  }
}

/**
 * What can be bound: a buffer, scratch memory, or nothing where the constants
 * keep the kernel from using it.
 */
export type Bindable = DeviceBuffer | GPUBuffer | Scratch | undefined;

/** One dispatch. */
export interface Dispatch {
  /** Entry point of the kernel. */
  readonly entry: string;
  /** Values for `override` constants; those the kernel lacks are left out. */
  readonly constants: Constants;
  /** Values of the fields of `Params`, all of them. */
  readonly params: Readonly<Record<string, number>>;
  /** Buffers by the name of their variable, all of them. */
  readonly bindings: Readonly<Record<string, Bindable>>;
  /** Workgroups along x, y and z. */
  readonly workgroups: readonly [x: number, y?: number, z?: number];
}

/** A dispatch that is ready to be encoded. */
export interface BoundDispatch {
  readonly pipeline: GPUComputePipeline;
  readonly bindGroup: GPUBindGroup;
  readonly workgroups: readonly [x: number, y?: number, z?: number];
}

/** What a recording becomes. */
export interface Recording {
  readonly dispatches: readonly BoundDispatch[];
  /** Buffers that belong to it. */
  readonly buffers: readonly GPUBuffer[];
}

/** Collects dispatches. */
export class Recorder {
  readonly #device: GPUDevice;
  readonly #pipelines: PipelineCache;
  readonly #factory: BufferFactory;
  readonly #steps: (Dispatch & { compiled: KernelPipeline })[] = [];
  readonly #scratch = new Map<string, Scratch>();

  /** Constructs an empty recording. */
  constructor(
    device: GPUDevice,
    { pipelines, factory }: {
      pipelines: PipelineCache;
      factory: BufferFactory;
    },
  ) {
    this.#device = device;
    this.#pipelines = pipelines;
    this.#factory = factory;
  }

  /** Bytes of workgroup memory that a kernel may use. */
  get workgroupBytes(): number {
    return this.#device.limits.maxComputeWorkgroupStorageSize;
  }

  /**
   * Scratch memory of at least `words` 32-bit words, shared by all kernels of
   * the program that ask for the same label.
   */
  scratch(label: string, words: number): Scratch {
    const scratch = this.#scratch.get(label) ?? new Scratch(label);
    scratch.bytes = Math.max(scratch.bytes, words * 4);
    this.#scratch.set(label, scratch);
    return scratch;
  }

  /** Adds a dispatch of `kernel`. */
  dispatch(kernel: string, dispatch: Dispatch): void {
    const limit = this.#device.limits.maxComputeWorkgroupsPerDimension;
    const largest = Math.max(...dispatch.workgroups.map((n) => n ?? 1));
    if (largest > limit) {
      throw new RangeError(
        `Cannot record kernel ${kernel}: it takes ${largest} workgroups in a row, but the device allows ${limit}`,
      );
    }
    const compiled = this.#pipelines.get(kernel, dispatch);
    this.#steps.push({ ...dispatch, compiled });
  }

  /** Makes everything that running the dispatches needs. */
  finish(label: string): Recording {
    const buffers: GPUBuffer[] = [];
    const create = (name: string, bytes: number) => {
      const buffer = this.#factory.create(`${label}: ${name}`, bytes);
      buffers.push(buffer);
      return buffer;
    };
    try {
      const scratch = new Map(
        [...this.#scratch.values()].map((
          scratch,
        ) => [scratch, create(scratch.label, scratch.bytes)]),
      );
      // What shaders read and never write, and the reverse, stays apart: one
      // buffer cannot be bound for both in the same dispatch.
      const unused = {
        read: create("unused input", 16),
        read_write: create("unused output", 16),
      };
      const stride = this.#device.limits.minUniformBufferOffsetAlignment;
      const sizes = this.#steps.map(({ compiled }) =>
        Math.ceil(compiled.source.params.length / 4) * 16
      );
      const pitch = Math.ceil(Math.max(16, ...sizes) / stride) * stride;
      const words = new ArrayBuffer(Math.max(1, this.#steps.length) * pitch);
      const params = create("parameters", words.byteLength);
      const dispatches = this.#steps.map((step, index): BoundDispatch => {
        const { source, pipeline, layout } = step.compiled;
        const view = new DataView(words, index * pitch, pitch);
        writeParams(view, source.params, step.params);
        const resource = (binding: Binding): GPUBufferBinding => {
          if (binding.access === "uniform") {
            return { buffer: params, offset: index * pitch, size: pitch };
          }
          if (!(binding.name in step.bindings)) {
            throw new TypeError(
              `Cannot record kernel ${source.name}: nothing is bound to ${binding.name}`,
            );
          }
          const bound = step.bindings[binding.name];
          if (bound === undefined) return { buffer: unused[binding.access] };
          if (bound instanceof Scratch) return { buffer: scratch.get(bound)! };
          return { buffer: memoryOf(bound, source.name) };
        };
        const bindGroup = this.#device.createBindGroup({
          label: `${label}: ${source.name}`,
          layout,
          entries: source.bindings.map((binding) => ({
            binding: binding.index,
            resource: resource(binding),
          })),
        });
        return { pipeline, bindGroup, workgroups: step.workgroups };
      });
      this.#device.queue.writeBuffer(params, 0, words);
      return { dispatches, buffers };
    } catch (error) {
      for (const buffer of buffers) this.#factory.destroy(buffer);
      throw error;
    }
  }
}

function memoryOf(buffer: DeviceBuffer | GPUBuffer, kernel: string): GPUBuffer {
  if (buffer instanceof WebGpuBuffer) return buffer.gpu;
  if (buffer instanceof GPUBuffer) return buffer;
  throw new TypeError(
    `Cannot record kernel ${kernel}: buffer ${buffer.label} belongs to another backend`,
  );
}

function writeParams(
  view: DataView,
  fields: readonly ParamField[],
  values: Readonly<Record<string, number>>,
): void {
  fields.forEach(({ name, type }, index) => {
    const value = values[name];
    if (value === undefined) {
      throw new TypeError(`Cannot record a kernel without parameter ${name}`);
    }
    if (type === "f32") view.setFloat32(index * 4, value, true);
    else view.setUint32(index * 4, value, true);
  });
}
