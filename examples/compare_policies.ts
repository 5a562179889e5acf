// The same prompt under five policies: what each one writes, how far that
// agrees with the full cache, and what the cache weighs.
import {
  fullCache,
  Generator,
  h2o,
  keepKV,
  openBackend,
  steady,
  streamingLlm,
} from "@steadykv/steadykv";

// The first chapters of a manual, about 380 tokens, and a third as many slots.
const prompt = (await Deno.readTextFile("examples/data/manual.txt"))
  .split("\n\n").slice(0, 9).join("\n\n") + "\n\n";
const budget = 128;
const policies = [
  // The full cache needs a slot for every token.
  fullCache({ budget: 512 }),
  steady({ budget }),
  keepKV({ budget }),
  h2o({ budget }),
  streamingLlm({ budget }),
];

await using backend = (await openBackend("auto")).backend;
const expected: number[] = [];
for (const cache of policies) {
  await using generator = await Generator.load("examples/models/docs-7m", {
    backend,
    cache,
  });
  const ids: number[] = [];
  let text = "";
  const options = { maxTokens: 48, temperature: 0 };
  for await (const token of generator.generate(prompt, options)) {
    ids.push(token.id);
    text += token.text;
  }
  if (expected.length === 0) expected.push(...ids);
  const different = expected.findIndex((id, i) => id !== ids[i]);
  const agreement = different < 0 ? expected.length : different;
  const { bytes, liveSlots } = generator.stats().cache;
  console.log(
    `${cache.name}: ${liveSlots} slots, ${(bytes / 2 ** 20).toFixed(2)} MiB, ` +
      `first ${agreement} of ${expected.length} tokens as with the full cache`,
  );
  console.log(`${text.trim().replace(/^/gm, "    ")}\n`);
}
