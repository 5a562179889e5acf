/**
 * Compiles kernels: one pipeline per kernel, entry point and constants.
 *
 * @module
 */
import { KernelError } from "../../errors.ts";
import type { DeviceMonitor } from "./device_monitor.ts";
import { composeShader, type ShaderSource } from "./shader_source.ts";

/** Values for `override` constants; those a kernel lacks are left out. */
export type Constants = Readonly<Record<string, number | boolean>>;

/** An entry point of a kernel, compiled for some constants. */
export interface KernelPipeline {
  readonly source: ShaderSource;
  readonly pipeline: GPUComputePipeline;
  readonly layout: GPUBindGroupLayout;
}

interface KernelModule {
  readonly source: ShaderSource;
  readonly module: GPUShaderModule;
  readonly layout: GPUBindGroupLayout;
  readonly pipelineLayout: GPUPipelineLayout;
}

/** The pipelines of one device. */
export class PipelineCache {
  readonly #device: GPUDevice;
  readonly #monitor: DeviceMonitor;
  readonly #files: Readonly<Record<string, string>>;
  readonly #modules = new Map<string, KernelModule>();
  readonly #pipelines = new Map<string, KernelPipeline>();

  /** Constructs an empty cache of kernels made from `files`. */
  constructor(
    device: GPUDevice,
    monitor: DeviceMonitor,
    { files }: { files: Readonly<Record<string, string>> },
  ) {
    this.#device = device;
    this.#monitor = monitor;
    this.#files = files;
  }

  /** Compiles an entry point, or finds it compiled already. */
  get(
    kernel: string,
    { entry, constants }: { entry: string; constants: Constants },
  ): KernelPipeline {
    const { source, module, layout, pipelineLayout } = this.#module(kernel);
    const values = Object.fromEntries(
      Object.entries(constants)
        .filter(([name]) => source.overrides.has(name))
        .map(([name, value]) => [name, Number(value)]),
    );
    const key = `${kernel} ${entry} ${JSON.stringify(values)}`;
    const known = this.#pipelines.get(key);
    if (known !== undefined) return known;
    const pipeline = this.#watch(
      kernel,
      () =>
        this.#device.createComputePipeline({
          label: `${kernel} ${entry}`,
          layout: pipelineLayout,
          compute: { module, entryPoint: entry, constants: values },
        }),
    );
    const made = { source, pipeline, layout };
    this.#pipelines.set(key, made);
    return made;
  }

  #module(kernel: string): KernelModule {
    const known = this.#modules.get(kernel);
    if (known !== undefined) return known;
    const source = composeShader(kernel, this.#files);
    const made = this.#watch(kernel, () => {
      const layout = this.#device.createBindGroupLayout({
        label: kernel,
        entries: source.bindings.map(({ index, access }) => ({
          binding: index,
          visibility: GPUShaderStage.COMPUTE,
          buffer: { type: bufferTypes[access] },
        })),
      });
      return {
        source,
        layout,
        module: this.#device.createShaderModule({
          label: kernel,
          code: source.code,
        }),
        pipelineLayout: this.#device.createPipelineLayout({
          label: kernel,
          bindGroupLayouts: [layout],
        }),
      };
    });
    this.#modules.set(kernel, made);
    return made;
  }

  #watch<T>(kernel: string, body: () => T): T {
    return this.#monitor.watch(
      body,
      (message) => new KernelError(kernel, message.trim()),
    );
  }
}

const bufferTypes = {
  read: "read-only-storage",
  read_write: "storage",
  uniform: "uniform",
} as const;
