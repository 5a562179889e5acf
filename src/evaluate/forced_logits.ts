/**
 * Logits along given texts, under a compressed cache.
 *
 * @module
 */
import { createBreather, readPrompt } from "../generate/read_prompt.ts";
import type { Policy } from "../policies/parts.ts";
import { type EvaluationModel, GREEDY, openEngine } from "./model.ts";
import type { ForcedWindows } from "./perplexity.ts";
import { TappedBackend } from "./tapped_backend.ts";

/**
 * Reads the prompts as the policy's schedule says, one after the other,
 * then the continuations token by token, all together, as if they had been
 * generated. All continuations have the same length.
 *
 * @returns For each token the logits `(windows)` rows `(vocabulary)` that the
 * tokens of the continuations would have been drawn from.
 */
export async function* forcedLogits(
  model: EvaluationModel,
  policy: Policy,
  { windows, signal }: ForcedWindows,
): AsyncGenerator<Float32Array[], void, undefined> {
  await using tap = new TappedBackend(model.backend, { queries: false });
  const sequences = windows.length;
  using engine = await openEngine(model, policy, { backend: tap, sequences });
  const { vocabulary } = model.config.sizes;
  const breathe = createBreather();
  const first: Float32Array[] = [];
  for (const [sequence, { prompt, continuation }] of windows.entries()) {
    engine.start(GREEDY, continuation.length, sequence);
    engine.force(continuation.slice(0, 1), { first: 0, sequence });
    const pieces = engine.pieces(prompt);
    await readPrompt(engine, pieces, { sequence, signal, breathe });
    // A prompt leaves its logits in the first row, whatever its sequence.
    first.push(await tap.readLabelled("logits", vocabulary));
  }
  yield first;
  for (let i = 1; i < windows[0]!.continuation.length; i++) {
    signal?.throwIfAborted();
    windows.forEach(({ continuation }, sequence) =>
      engine.force(continuation.slice(i, i + 1), { first: i, sequence })
    );
    engine.decode(1);
    const logits = await tap.readLabelled("logits", sequences * vocabulary);
    yield windows.map((_, sequence) =>
      logits.subarray(sequence * vocabulary, (sequence + 1) * vocabulary)
    );
    await breathe();
  }
}
