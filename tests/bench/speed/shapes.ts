/**
 * Models that speed is measured at: their real sizes, without their weights.
 * The files are `config.json`s, so that other programs can be given the same.
 */
import {
  type ModelConfig,
  parseModelConfig,
} from "../../../src/model/config.ts";
import { planWeights } from "../../../src/model/weight_plan.ts";

const FOLDER = new URL("../shapes/", import.meta.url);

/** Names of the shapes, the largest first; `tiny` is for trying things out. */
export const shapeNames = [
  "llama-3.1-8b",
  "qwen2.5-1.5b",
  "qwen2.5-0.5b",
  "tiny",
] as const;

/** Name of a shape. */
export type ShapeName = typeof shapeNames[number];

/** Reads the configuration of a shape. */
export async function readShape(name: ShapeName): Promise<ModelConfig> {
  const file = `${name}.json`;
  const text = await Deno.readTextFile(new URL(file, FOLDER));
  return parseModelConfig(text, file);
}

/** Elements of the matrices that one token is multiplied with. */
export function matrixElements(
  config: ModelConfig,
): { readonly layers: number; readonly head: number } {
  const { layers, head, embedding } = planWeights(config);
  const size = ({ rows, columns }: { rows: number; columns: number }) =>
    rows * columns;
  return {
    layers: layers
      .flatMap(({ qkv, output, gateUp, down }) => [qkv, output, gateUp, down])
      .reduce((sum, matrix) => sum + size(matrix), 0),
    head: size(head ?? embedding),
  };
}
