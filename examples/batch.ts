// Continues three prompts together: a step reads the weights once for all of
// them. Each text has a cache of its own, and ends by itself.
import { Generator, keepKV } from "@steadykv/steadykv";

const prompts = [
  "The SELECT statement",
  "The CREATE TABLE command",
  "An index on a table",
];
await using generator = await Generator.load("examples/models/docs-7m", {
  cache: keepKV({ budget: 64 }),
  sequences: prompts.length,
});
const texts = [...prompts];
const options = {
  maxTokens: 48,
  temperature: 0.7,
  seed: 1,
  stop: [".\n", ". "],
};
for await (
  const { sequence, text, last } of generator.generateBatch(prompts, options)
) {
  texts[sequence] += text;
  if (last) console.log(`${sequence + 1}: ${texts[sequence]}.\n`);
}
const { cache, sequences, generatedTokens } = generator.stats();
console.log(
  `${generatedTokens} tokens; ${sequences} caches of ${cache.budgetSlots} slots ` +
    `are ${(cache.bytes / 2 ** 20).toFixed(2)} MiB`,
);
