import type {
  DeviceBuffer,
  DeviceMatrix,
  HostTensor,
  Kernels,
  Program,
  Slots,
  WriteRowsOptions,
} from "../../src/backends/backend.ts";
import { CpuBackend } from "../../src/backends/cpu/cpu_backend.ts";

/**
 * The CPU backend with weights, keys and values rounded to 16-bit floats where
 * a GPU backend stores them: what rounding alone does to a result.
 */
export class HalfCpuBackend extends CpuBackend {
  override writeRows(
    matrix: DeviceMatrix,
    data: Float32Array,
    options: WriteRowsOptions,
  ): void {
    super.writeRows(matrix, rounded(data), options);
  }

  override record(label: string, body: (kernels: Kernels) => void): Program {
    const programs: Program[] = [];
    const one = (call: (kernels: Kernels) => void) =>
      programs.push(super.record(label, call));
    const kernels = new Proxy({}, {
      get: (_, name: keyof Kernels) => (args: never) => {
        one((kernels) => kernels[name](args));
        if (name !== "qkvRopeAppend") return;
        const { cache } = args as { cache: Record<string, Slots<unknown>> };
        const run = () => {
          roundSlots(cache["slots"]!);
          roundSlots(cache["stage"]!);
        };
        programs.push({ label, run, [Symbol.dispose]() {} });
      },
    });
    body(kernels as Kernels);
    return {
      label,
      run(times = 1): void {
        for (let i = 0; i < times; i++) {
          for (const program of programs) program.run();
        }
      },
      [Symbol.dispose](): void {
        for (const program of programs) program[Symbol.dispose]();
      },
    };
  }
}

function rounded(data: Float32Array): Float32Array {
  return new Float32Array(new Float16Array(data));
}

function roundSlots({ keys, values }: Slots<unknown>): void {
  for (const buffer of [keys, values]) {
    // Buffers of the CPU backend are host tensors.
    const { f32 } = buffer as DeviceBuffer & HostTensor;
    f32.set(rounded(f32));
  }
}
