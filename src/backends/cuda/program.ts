import type { Program } from "../backend.ts";

/** A recorded program of a CUDA device. */
export class CudaProgram implements Program {
  readonly label: string;
  readonly #run: (times: number) => void;
  readonly #dispose: () => void;
  #live = true;

  /** Constructs a program from what the library does with it. */
  constructor(
    label: string,
    { run, dispose }: { run: (times: number) => void; dispose: () => void },
  ) {
    this.label = label;
    this.#run = run;
    this.#dispose = dispose;
  }

  run(times = 1): void {
    if (!this.#live) {
      throw new TypeError(`Cannot run program ${this.label}: it was disposed`);
    }
    this.#run(times);
  }

  [Symbol.dispose](): void {
    if (this.#live) this.#dispose();
    this.#live = false;
  }
}
