import { adaptiveCases } from "./adaptive_cases.ts";
import { attentionCases, chunkCases, searchCases } from "./chunk_cases.ts";
import { consecutiveCases } from "./consecutive_cases.ts";
import { decodeCases } from "./decode_cases.ts";
import type { KernelCase } from "./kernel_case.ts";
import { largeCases } from "./large_cases.ts";
import { batchCases, matrixCases, vectorCases } from "./matrix_cases.ts";
import { qkvCases } from "./qkv_cases.ts";
import { queryStatisticsCases } from "./query_statistics_cases.ts";
import { sampleCases } from "./sample_cases.ts";
import { segmentCases } from "./segment_cases.ts";
import { selectionCases } from "./selection_cases.ts";
import { valueNormsCases } from "./value_norms_cases.ts";

/** The cases of products with weights, and of `embed`. */
export const productCases: readonly KernelCase[] = [
  ...matrixCases,
  ...vectorCases,
  ...batchCases,
  ...qkvCases,
];

/** The cases of attention and of what policies do with keys and values. */
const policyCases: readonly KernelCase[] = [
  ...decodeCases,
  ...consecutiveCases,
  ...chunkCases,
  ...adaptiveCases,
  ...selectionCases,
  ...segmentCases,
  ...valueNormsCases,
];

/** The cases that every backend is tested with. */
export const cases: readonly KernelCase[] = [
  ...productCases,
  ...policyCases,
  ...queryStatisticsCases,
  ...sampleCases,
];

/** The cases whose kernels touch keys or values, and numbers no half can hold. */
export const cacheCases: readonly KernelCase[] = [
  ...qkvCases,
  ...policyCases,
  ...largeCases,
];

/** The cases that multiply with a matrix that may be split. */
export const splitCases: readonly KernelCase[] = [
  ...matrixCases,
  ...qkvCases,
  ...valueNormsCases,
];

/** The cases whose kernels have other forms for older devices. */
export const olderCases: readonly KernelCase[] = [
  ...productCases,
  ...attentionCases,
  ...searchCases,
];

/** Bytes that split every matrix of {@linkcode splitCases}. */
export const SPLIT_BYTES = 2560;
