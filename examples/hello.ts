// Streams a text. However long it gets, the cache stays at 256 slots per head.
import { Generator, steady } from "@steadykv/steadykv";

await using generator = await Generator.load("examples/models/docs-7m", {
  cache: steady({ budget: 256 }),
});
const prompt = "The SELECT statement";
const options = { maxTokens: 60, temperature: 0.7, topP: 0.9, seed: 1 };
console.log(`${prompt} …`);
for await (const { text } of generator.generate(prompt, options)) {
  await Deno.stdout.write(new TextEncoder().encode(text));
}
console.log();
