/**
 * Sizes of the tiles of `shaders/lib/score_tile.wgsl`.
 *
 * @module
 */
import type { Constants } from "../pipelines.ts";

/** Most bytes that a tile takes beside queries, keys and logits. */
const OTHER_BYTES = 4096;

/**
 * Constants for the largest tiles that fit in workgroup memory.
 *
 * @param queryTiles Numbers of queries to try, the largest first.
 * @param keyTiles Numbers of keys to try with each.
 * @throws {RangeError} If not even the smallest tiles fit.
 */
export function tileConstants(
  { headDim, workgroupBytes, queryTiles, keyTiles }: {
    headDim: number;
    workgroupBytes: number;
    queryTiles: readonly number[];
    keyTiles: readonly number[];
  },
): Constants & { QUERY_TILE: number; KEY_TILE: number } {
  for (const queries of queryTiles) {
    for (const keys of keyTiles) {
      const sizes = {
        QUERY_PAIRS: queries * headDim / 2,
        KEY_WORDS: keys * (headDim / 2 + 1),
        LOGITS: queries * (keys + 1),
      };
      const words = 2 * sizes.QUERY_PAIRS + sizes.KEY_WORDS + sizes.LOGITS;
      if (words * 4 + OTHER_BYTES <= workgroupBytes) {
        return { QUERY_TILE: queries, KEY_TILE: keys, ...sizes };
      }
    }
  }
  throw new RangeError(
    `Cannot record attention for heads of width ${headDim}: its tiles do not fit in the ${workgroupBytes} bytes of workgroup memory that the device has`,
  );
}
