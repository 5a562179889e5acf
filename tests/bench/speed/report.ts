/** Where results go: lines on standard output, and a file. */
import type { BackendName } from "../../../src/backends/backend.ts";
import { print } from "../../../src/cli/terminal.ts";
import type { Ceilings } from "./bounds.ts";
import type { Failure, Result } from "./results.ts";
import { summarize } from "./summary.ts";
import { tableHead, tableRow } from "./table.ts";

/** What all results of a run have in common. */
export interface About {
  readonly backend: BackendName;
  readonly device: string;
  readonly ceilings: Ceilings;
}

/** Prints results as they come, and keeps the file complete at each moment. */
export class Report {
  /** What all results have in common. */
  readonly about: About;
  readonly #file: string | undefined;
  readonly #results: Result[] = [];
  readonly #failures: Failure[] = [];

  /** Constructs a report that also goes to `file`, if there is one. */
  constructor(file: string | undefined, about: About) {
    this.#file = file;
    this.about = about;
  }

  /** Whether there is any result. */
  get measured(): boolean {
    return this.#results.length > 0;
  }

  /** Prints what all results have in common, and the head of the table. */
  async begin(): Promise<void> {
    const { backend, device, ceilings: { stream, matrix } } = this.about;
    const rates = [
      ...stream === undefined ? [] : [`read ${(stream / 1e9).toFixed(0)} GB/s`],
      ...matrix === undefined
        ? []
        : [`matrix ${(matrix / 1e12).toFixed(0)} TFLOP/s`],
    ];
    await print(`${[`${backend}: ${device}`, ...rates].join(", ")}\n`);
    await print(`${tableHead}\n`);
  }

  /** Adds results. */
  async add(results: readonly Result[]): Promise<void> {
    for (const result of results) await print(`${tableRow(result)}\n`);
    this.#results.push(...results);
    await this.#write();
  }

  /** Says what could not be measured. */
  async fail(failure: Failure): Promise<void> {
    const { section, shape, what, reason } = failure;
    await print(`${section}  ${shape}  ${what}: not measured: ${reason}\n`);
    this.#failures.push(failure);
    await this.#write();
  }

  /** Prints what the results say side by side. */
  async end(): Promise<void> {
    for (const sentence of summarize(this.#results)) {
      await print(`${sentence}\n`);
    }
    await this.#write();
  }

  async #write(): Promise<void> {
    if (this.#file === undefined) return;
    const text = JSON.stringify({
      ...this.about,
      results: this.#results,
      failures: this.#failures,
    });
    await Deno.writeTextFile(this.#file, `${text}\n`);
  }
}
