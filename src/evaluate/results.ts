/**
 * Results of an evaluation, one JSON object a line, so that a run that was cut
 * off goes on where it stopped.
 *
 * @module
 */
import type { Agreement } from "./agreement.ts";
import { EvaluationFormatError, parseJsonAt } from "./format_error.ts";
import type { CacheMemory } from "./memory.ts";
import type { MergeStatistics } from "./merge_statistics.ts";
import type { Perturbation } from "./perturbation.ts";
import type { RetrievalOutcome } from "./retrieval.ts";
import type { RetrievalForm } from "./retrieval_tasks.ts";
import type { QuestionSetting, Setting } from "./settings.ts";
import type { Throughput } from "./throughput.ts";

/** Version of the rows; others are not read. */
export const RESULT_VERSION = 1;

/** How a window was predicted under a policy and under the full cache. */
export interface PerplexityResult {
  /** Tokens scored. */
  readonly tokens: number;
  /** Mean loss in nats per token. */
  readonly loss: number;
  /** The same under the full cache. */
  readonly fullLoss: number;
  /** What the cache did. */
  readonly merges: MergeStatistics;
}

/** A window of a document. */
export interface WindowItem {
  /** `source/name`. */
  readonly document: string;
  /** Tokens of the document before the window. */
  readonly start: number;
}

/** A retrieval task. */
export interface RetrievalItem {
  /** What the text looks like. */
  readonly form: RetrievalForm;
  /** Tokens of context and question, as the plan has them. */
  readonly length: number;
  /** Share of the context before the fact. */
  readonly depth: number;
  /** Seed of the task. */
  readonly seed: number;
}

/** What is measured, on what, and what came of it. */
export type Measurement =
  | {
    readonly kind: "perplexity";
    readonly item: WindowItem;
    readonly result: PerplexityResult;
  }
  | {
    readonly kind: "agreement";
    readonly item: WindowItem;
    readonly result: Agreement;
  }
  | {
    readonly kind: "perturbation";
    readonly item: WindowItem;
    readonly result: Perturbation;
  }
  | {
    readonly kind: "retrieval";
    readonly item: RetrievalItem;
    readonly question: QuestionSetting;
    readonly result: RetrievalOutcome;
  }
  | {
    readonly kind: "throughput";
    readonly item: { readonly prompt: number; readonly generate: number };
    readonly result: Throughput;
  };

/** Kinds of measurements. */
export type MeasurementKind = Measurement["kind"];

/** One result. */
export type ResultRow = Measurement & {
  /** See {@linkcode RESULT_VERSION}. */
  readonly version: number;
  /** Hash of everything that the result follows from. */
  readonly key: string;
  /** What the task is called; results of one task can be averaged. */
  readonly task: string;
  /** Name of the model. */
  readonly model: string;
  /** Name of the backend, with the type of its caches if not `half`. */
  readonly backend: string;
  /** Label of the policy; `full` is the full cache. */
  readonly policy: string;
  /** Label of the budget; `full` for the full cache. */
  readonly budget: string;
  /**
   * How the prompt was read; `either` for the full cache, which no setting
   * changes.
   */
  readonly setting: Setting | "either";
  /** Memory of the cache. */
  readonly memory: CacheMemory & {
    /** Bytes of slots of a full cache for the same text. */
    readonly fullBytes: number;
  };
};

/** A result of one kind. */
export type RowOf<K extends MeasurementKind> = Extract<ResultRow, { kind: K }>;

/** Where results are kept. */
export interface ResultStore {
  /** Results so far. */
  readonly rows: readonly ResultRow[];
  /** Adds a result. */
  append(row: ResultRow): Promise<void>;
}

/** Keeps results in memory alone. */
export function memoryResults(): ResultStore {
  const rows: ResultRow[] = [];
  return {
    rows,
    append(row) {
      rows.push(row);
      return Promise.resolve();
    },
  };
}

/**
 * Keeps results in a file, and reads those that are there. A last line without
 * an end was cut off while it was written, and is removed.
 *
 * @throws {EvaluationFormatError} If a line is not a result of this version.
 */
export async function openResults(path: string): Promise<ResultStore> {
  let text = "";
  try {
    text = await Deno.readTextFile(path);
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  }
  const end = text.lastIndexOf("\n") + 1;
  if (end < text.length) {
    text = text.slice(0, end);
    await Deno.writeTextFile(path, text);
  }
  const rows = parseResults(text, path);
  return {
    rows,
    async append(row) {
      await Deno.writeTextFile(path, `${JSON.stringify(row)}\n`, {
        append: true,
      });
      rows.push(row);
    },
  };
}

/**
 * Parses results, one a line.
 *
 * @throws {EvaluationFormatError} If a line is not a result of this version.
 */
export function parseResults(text: string, file: string): ResultRow[] {
  return text.split("\n").flatMap((line, index) => {
    if (line === "") return [];
    const place = `line ${index + 1}`;
    const row = parseJsonAt(line, { file, place }) as ResultRow | null;
    if (row?.version === RESULT_VERSION && typeof row.key === "string") {
      return [row];
    }
    throw new EvaluationFormatError(
      file,
      `${place}: version is ${row?.version}, expected ${RESULT_VERSION}: start in a new file`,
    );
  });
}
