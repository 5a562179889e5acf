// A conversation under a fixed budget. The history is a list of messages; what
// the cache holds of it already is not read again.
import { Generator, steady } from "@steadykv/steadykv";

await using generator = await Generator.load("examples/models/docs-7m", {
  cache: steady({ budget: 128 }),
});

const messages: { role: string; content: string }[] = [];
for (
  const question of [
    "The access code for the silver heron is 48213. " +
    "What is the access code for the silver heron?",
    "Now the access code for the amber fox is 6154.",
    "What is the access code for the silver heron?",
    "What is the access code for the amber fox?",
  ]
) {
  console.log(`> ${question}`);
  messages.push({ role: "user", content: question });
  let answer = "";
  for await (const { text } of generator.chat(messages, { maxTokens: 40 })) {
    await Deno.stdout.write(new TextEncoder().encode(text));
    answer += text;
  }
  messages.push({ role: "assistant", content: answer });

  const { promptTokens, reusedTokens, cache } = generator.stats();
  console.log(
    `\n  [${promptTokens} tokens read, ${reusedTokens} reused; ` +
      `${cache.liveSlots} of ${cache.budgetSlots} slots]\n`,
  );
}
