/**
 * Logits along a given text, under a compressed cache.
 *
 * @module
 */
import type { Policy } from "../policies/parts.ts";
import { type EvaluationModel, GREEDY, openEngine } from "./model.ts";
import { TappedBackend } from "./tapped_backend.ts";

/** What {@linkcode forcedLogits} reads. */
export interface ForcedLogitsOptions {
  /** Ids that are read first, at least one. */
  readonly prompt: readonly number[];
  /** Ids that are forced after them, at least one. */
  readonly continuation: readonly number[];
  /** Stops with the signal's reason. */
  readonly signal?: AbortSignal | undefined;
}

/**
 * Reads the prompt in chunks of the policy's schedule, then the continuation
 * token by token as if it had been generated.
 *
 * @returns For each id of the continuation the logits `(vocabulary)` that it
 * would have been drawn from.
 */
export async function* forcedLogits(
  model: EvaluationModel,
  policy: Policy,
  { prompt, continuation, signal }: ForcedLogitsOptions,
): AsyncGenerator<Float32Array, void, undefined> {
  await using tap = new TappedBackend(model.backend, { queries: false });
  using engine = await openEngine(model, policy, { backend: tap });
  const { vocabulary } = model.config.sizes;
  const { chunk } = policy.schedule;
  engine.start(GREEDY, continuation.length);
  for (let at = 0; at < prompt.length; at += chunk) {
    const last = at + chunk >= prompt.length;
    if (last) engine.force(continuation.slice(0, 1), { first: 0 });
    engine.prefill(prompt.slice(at, at + chunk), {
      then: last ? "sample" : "nothing",
    });
    // Chunks are enqueued as fast as they are cut; wait for each one.
    await engine.done();
    signal?.throwIfAborted();
  }
  yield await tap.readLabelled("logits", vocabulary);
  for (let i = 1; i < continuation.length; i++) {
    signal?.throwIfAborted();
    engine.force(continuation.slice(i, i + 1), { first: i });
    engine.decode(1);
    yield await tap.readLabelled("logits", vocabulary);
  }
}
