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
import type { Precision } from "../../src/policies/parts.ts";
import { roundToBfloat16, roundToHalf } from "../kernels/random.ts";

/**
 * The CPU backend with weights, keys and values rounded to 16 bits where a GPU
 * backend stores them: what rounding alone does to a result.
 */
export class HalfCpuBackend extends CpuBackend {
  /** Rounds keys and values. */
  readonly #round: (values: Float32Array) => Float32Array;

  /** Constructs a new instance whose caches hold what `precision` names. */
  constructor(precision: Precision["kind"] = "half") {
    super();
    this.#round = precision === "half" ? roundToHalf : roundToBfloat16;
  }

  override writeRows(
    matrix: DeviceMatrix,
    data: Float32Array,
    options: WriteRowsOptions,
  ): void {
    super.writeRows(matrix, roundToHalf(data), options);
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
          this.#roundSlots(cache["slots"]!);
          this.#roundSlots(cache["stage"]!);
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

  #roundSlots({ keys, values }: Slots<unknown>): void {
    for (const buffer of [keys, values]) {
      // Buffers of the CPU backend are host tensors.
      const { f32 } = buffer as DeviceBuffer & HostTensor;
      f32.set(this.#round(f32));
    }
  }
}
