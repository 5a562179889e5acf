/**
 * `model.safetensors.index.json`: which tensor lies in which shard.
 *
 * @module
 */
import * as v from "valibot";
import { ModelFormatError } from "../errors.ts";
import { checkSchema, parseJson, show } from "./json.ts";

const Index = v.object({
  weight_map: v.custom<Record<string, unknown>>(
    (value) =>
      typeof value === "object" && value !== null && !Array.isArray(value),
    "an object",
  ),
}, "an object");

/**
 * Reads the text of an index. The names in it come from a stranger, so only
 * plain names of files beside the index are let through.
 *
 * @param file Name of the index for error messages.
 * @returns The shard of each tensor.
 * @throws {ModelFormatError} If a shard is not a plain file name.
 */
export function parseShardIndex(
  text: string,
  file: string,
): Map<string, string> {
  const { weight_map } = checkSchema(Index, parseJson(text, file), file);
  const shards = new Map<string, string>();
  for (const [tensor, shard] of Object.entries(weight_map)) {
    // No separators, no drive letters, no parent folders.
    if (typeof shard !== "string" || !/^[\w.-]+\.safetensors$/.test(shard)) {
      throw new ModelFormatError(
        file,
        `weight_map has ${show(shard)} for ${
          show(tensor)
        }, expected the plain name of a .safetensors file`,
      );
    }
    shards.set(tensor, shard);
  }
  if (shards.size === 0) {
    throw new ModelFormatError(file, "weight_map is empty, expected tensors");
  }
  return shards;
}
