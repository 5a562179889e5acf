// Reads a text ten times as long as its budget. The device holds the same
// bytes from chunk to chunk: each one is merged into the slots before the next
// one is read.
import { Generator, keepKV } from "@steadykv/steadykv";

// A manual of some 1,200 tokens with a fact at its start and one in the middle.
// The model was trained to find such facts.
const paragraphs = (await Deno.readTextFile("examples/data/manual.txt"))
  .trim().split("\n\n");
paragraphs.unshift("The access code for the silver heron is 48213.");
paragraphs.splice(16, 0, "The access code for the amber fox is 90517.");
const question = (name: string) =>
  `\n\nQuestion: What is the access code for the ${name}?\n` +
  `Answer: The access code for the ${name} is`;

await using generator = await Generator.load("examples/models/docs-7m", {
  // The first 32 tokens are never merged: a place for what must not be lost.
  cache: keepKV({ budget: 128, sinks: 32 }),
});

const options = { maxTokens: 8, temperature: 0 };
const first = await generator.generateText(
  paragraphs.join("\n\n") + question("silver heron"),
  {
    ...options,
    onPrefill(done, total) {
      const { deviceBytes } = generator.stats();
      const mebibytes = (deviceBytes / 2 ** 20).toFixed(2);
      console.log(
        `${done} of ${total} tokens read, ${mebibytes} MiB on the device`,
      );
    },
  },
);
const { cache } = generator.stats();
console.log(`
The cache is ${(cache.bytes / 2 ** 20).toFixed(2)} MiB of that: \
${cache.liveSlots} of ${cache.budgetSlots} slots are in use,
${cache.merges} slots were merged and ${cache.drops} dropped over all heads.
`);

// The second question continues the text: nothing is read again.
const second = await generator.generateText(question("amber fox"), {
  ...options,
  append: true,
});

// What was protected is there to the digit. Of everything else a cache of a
// tenth of the text keeps the gist, and a number in the middle is soon lost.
for (
  const [name, code, answer] of [
    ["silver heron", "48213", first],
    ["amber fox", "90517", second],
  ] as const
) {
  const [line = ""] = answer.trim().split("\n");
  const verdict = line.startsWith(code) ? "right" : `wrong, it is ${code}`;
  console.log(`The access code for the ${name} is ${line} (${verdict})`);
}
