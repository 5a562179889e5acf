/**
 * Measures what compressing a cache costs: perplexity, agreement with the full
 * cache, facts found, change of attention outputs, merges, speed and bytes.
 *
 * A plan says which policies, budgets and settings are measured on which
 * tasks; {@linkcode runPlan} runs what is left of it, {@linkcode summarize}
 * makes means with confidence intervals, and {@linkcode renderReport} one page
 * of HTML.
 *
 * The two settings are never mixed: `whole` compresses a prompt once at its
 * end, as in the papers; `streaming` reads it in constant memory.
 *
 * @example
 * ```ts ignore
 * import { openBackend } from "@steadykv/steadykv";
 * import {
 *   loadDocuments,
 *   memoryResults,
 *   openEvaluationModel,
 *   parsePlan,
 *   renderReport,
 *   runPlan,
 *   summarize,
 * } from "@steadykv/steadykv/evaluate";
 *
 * const { backend } = await openBackend("auto");
 * await using _backend = backend;
 * using model = await openEvaluationModel("examples/models/docs-7m", { backend });
 * const rows = await runPlan({
 *   model,
 *   documents: await loadDocuments("heldout.jsonl"),
 *   plan: parsePlan(await Deno.readTextFile("plan.json"), "plan.json"),
 *   results: memoryResults(),
 * });
 * await Deno.writeTextFile("report.html", renderReport(summarize(rows)));
 * ```
 *
 * @module
 */
export { type Agreement, compareLogits, logitDivergence } from "./agreement.ts";
export {
  documentId,
  type EvaluationDocument,
  type Half,
  halfOf,
  loadDocuments,
  parseDocuments,
} from "./documents.ts";
export { forcedLogits } from "./forced_logits.ts";
export { EvaluationFormatError } from "./format_error.ts";
export { type HeadLossesOptions, measureHeadLosses } from "./head_losses.ts";
export type { HeadLosses } from "../policies/allocations/head_losses.ts";
export type { LiveSlot } from "./live_slots.ts";
export {
  type CacheMemory,
  type CachePlace,
  fullCacheBytes,
  measureMemory,
} from "./memory.ts";
export type { LayerMerges, MergeStatistics } from "./merge_statistics.ts";
export {
  type EvaluationModel,
  openEvaluationModel,
  type OpenModelOptions,
  type TextCodec,
} from "./model.ts";
export {
  type ForcedWindow,
  type ForcedWindows,
  meanLoss,
  scoreWindows,
  type WindowScore,
} from "./perplexity.ts";
export {
  type AttentionProbe,
  type LayerProbe,
  measurePerturbation,
  type Perturbation,
  probeAttention,
  type ProbeOptions,
  type ProbeQueries,
  probeQueries,
} from "./perturbation.ts";
export {
  type EvaluationPlan,
  parsePlan,
  type PerturbationTask,
  type PlanPolicy,
  type PlanTask,
  type RetrievalTask,
  type TextTask,
  type ThroughputTask,
} from "./plan.ts";
export { budgetLabel, type PlanBudget, promptBudget } from "./plan_budget.ts";
export { fillerLines } from "./haystack.ts";
export { measureProfile, type ProfileOptions } from "./profile.ts";
export type { AttentionProfile } from "../policies/allocations/attention_profile.ts";
export {
  type Measurement,
  type MeasurementKind,
  memoryResults,
  openResults,
  parseResults,
  type PerplexityResult,
  type ResultRow,
  type ResultStore,
  type RetrievalItem,
  type RowOf,
  type WindowItem,
} from "./results.ts";
export {
  encodeRetrieval,
  type RetrievalIds,
  type RetrievalOptions,
  type RetrievalOutcome,
  runRetrieval,
} from "./retrieval.ts";
export {
  createRetrieval,
  type RetrievalExample,
  type RetrievalForm,
  retrievalForms,
  type RetrievalPlace,
  type RetrievalSource,
} from "./retrieval_tasks.ts";
export { type RunOptions, runPlan, type RunProgress } from "./run.ts";
export {
  type QuestionSetting,
  type Setting,
  type SettingOptions,
  withSetting,
} from "./settings.ts";
export {
  type BootstrapOptions,
  type Estimate,
  estimateDifference,
  estimateMean,
  estimateShare,
  mean,
  type PairedEstimate,
  quantile,
  signTest,
} from "./statistics.ts";
export {
  measureThroughput,
  type Throughput,
  type ThroughputOptions,
} from "./throughput.ts";
export {
  selectWindows,
  slideWindows,
  type TextWindow,
  type WindowOptions,
  type WindowShape,
} from "./windows.ts";
export type { TableName, Variant } from "./report/grouping.ts";
export { renderReport, type ReportOptions } from "./report/report.ts";
export type {
  LowerShare,
  PerturbationEntry,
  PerturbationTable,
} from "./report/summarize_perturbation.ts";
export type {
  RetrievalCell,
  RetrievalEntry,
  RetrievalTable,
} from "./report/summarize_retrieval.ts";
export type {
  AgreementEntry,
  AgreementTable,
  MergeEntry,
  MergeTable,
  PerplexityEntry,
  PerplexityPair,
  PerplexityTable,
} from "./report/summarize_text.ts";
export {
  type EvaluationSummary,
  summarize,
  type ThroughputEntry,
  type ThroughputTable,
} from "./report/summary.ts";
export type { Architecture, AttentionBias } from "../model/architectures.ts";
export type { ModelConfig } from "../model/config.ts";
export type { RopeConfig } from "../model/rope_config.ts";
export type { LayerWeights, LoadProgress, Weights } from "../model/weights.ts";
export type { ChatMessage } from "../tokens/chat_template.ts";
