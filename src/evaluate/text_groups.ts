/**
 * The texts of a plan, and how a policy is measured on each.
 *
 * @module
 */
import { fillerLines } from "./haystack.ts";
import type { PlanTask, RetrievalTask, ThroughputTask } from "./plan.ts";
import type { Measurement } from "./results.ts";
import { encodeRetrieval, promptParts, runRetrieval } from "./retrieval.ts";
import { createRetrieval } from "./retrieval_tasks.ts";
import type { TextGroup, TextSource } from "./text_group.ts";
import { measureThroughput } from "./throughput.ts";
import {
  perturbationGroups,
  scoredGroups,
  windowsOf,
} from "./window_groups.ts";

/**
 * The texts of a task.
 *
 * @throws {RangeError} If the documents are too short for it.
 */
export function createGroups(
  task: PlanTask,
  source: TextSource,
): TextGroup[] {
  switch (task.kind) {
    case "perplexity":
    case "agreement":
      return scoredGroups(task, source);
    case "perturbation":
      return perturbationGroups(task, source);
    case "retrieval":
      return retrievalGroups(task, source);
    case "throughput":
      return throughputGroups(task, source);
  }
}

function retrievalGroups(
  task: RetrievalTask,
  { model, documents, seeds }: TextSource,
): TextGroup[] {
  const { kind, form, questions = ["seen", "unseen"], needles } = task;
  const filler = fillerLines(documents);
  const places = seeds.flatMap((seed) =>
    task.lengths.flatMap((length) =>
      task.depths.map((depth) => ({ length, depth, seed }))
    )
  );
  return places.flatMap((place) => {
    const example = createRetrieval(form, place, {
      model,
      filler,
      ...(needles !== undefined && { needles }),
    });
    const ids = encodeRetrieval(model, example);
    const promptTokens = ids.context.length + ids.question.length;
    return questions.map((question): TextGroup => ({
      task: form,
      identities: [{ kind, example, question }],
      promptTokens,
      totalTokens: promptTokens + example.answerTokens,
      longestPart: Math.max(
        ...promptParts(ids, question).map(({ length }) => length),
      ),
      measuresFull: true,
      async measure(policy, _, signal): Promise<Measurement[]> {
        const options = { example, question, signal };
        const result = await runRetrieval(model, policy, options);
        return [{ kind, item: { form, ...place }, question, result }];
      },
      release() {},
    }));
  });
}

function throughputGroups(
  { kind, prompt, generate, repeats }: ThroughputTask,
  source: TextSource,
): TextGroup[] {
  const { model } = source;
  const [window] = windowsOf(
    { kind: "perplexity", prompt, continuation: 1, documents: 1 },
    source,
  );
  return [{
    task: `${kind} ${prompt}+${generate}`,
    identities: [{ kind, window, generate, repeats }],
    promptTokens: prompt,
    totalTokens: prompt + generate,
    longestPart: prompt,
    measuresFull: true,
    async measure(policy, _, signal): Promise<Measurement[]> {
      const result = await measureThroughput(model, policy, {
        prompt: window!.prompt,
        generate,
        signal,
        ...(repeats !== undefined && { repeats }),
      });
      return [{ kind, item: { prompt, generate }, result }];
    },
    release() {},
  }];
}
