/**
 * Cutting prompts into chunks so that what belongs together stays together.
 *
 * @module
 */

/**
 * Cuts ids into chunks of `chunk`; the first one has what is left over. So the
 * end of a prompt, where a question stands, is never cut from what is before
 * it unless it is longer than a chunk.
 */
export function chunksFromEnd(
  ids: readonly number[],
  chunk: number,
): number[][] {
  const chunks: number[][] = [];
  const first = ids.length % chunk || Math.min(chunk, ids.length);
  for (let start = 0, end = first; start < ids.length;) {
    chunks.push(ids.slice(start, end));
    [start, end] = [end, end + chunk];
  }
  return chunks;
}
