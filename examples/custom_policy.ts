// A policy is data: one choice for each part of a method. This one is not
// published anywhere. It merges as KeepKV does, but ranks slots by everything
// they were ever attended with, as H2O does.
import { definePolicy, Generator, keepKV } from "@steadykv/steadykv";

const policy = definePolicy({
  name: "merging heavy hitters",
  // 128 slots per head, the same for each layer.
  budget: 128,
  // Every row of a prompt is observed, and attention is summed up.
  probe: { kind: "all" },
  score: { kind: "accumulated" },
  // The first 4 tokens and the newest 32 always stay.
  select: { sinks: 4, recent: { slots: 32 } },
  // The slot with the lowest score is merged into the one with the most
  // similar key. If none is similar, it is dropped.
  merge: {
    kind: "votes",
    key: "minNorm",
    threshold: 0.7,
    prefill: "mergeFirst",
    votesPerQueryHead: false,
    guard: [0.5, 1.5],
  },
  // A prompt is compressed after every 64 tokens.
  schedule: { kind: "streaming", chunk: 64 },
});

// Or take a published method and change one part.
const cautious = {
  ...keepKV({
    budget: 128,
    threshold: 0.95,
    allocate: { layers: { kind: "uniform" } },
  }),
  name: "keepkv that rarely merges",
};

const prompt = (await Deno.readTextFile("examples/data/manual.txt"))
  .split("\n\n").slice(0, 7).join("\n\n") + "\n\n";
for (const cache of [policy, cautious]) {
  await using generator = await Generator.load("examples/models/docs-7m", {
    cache,
  });
  const text = await generator.generateText(prompt, {
    maxTokens: 48,
    temperature: 0,
  });
  const { merges, drops, liveSlots } = generator.stats().cache;
  console.log(
    `${cache.name}: ${liveSlots} slots, ${merges} merged, ${drops} dropped`,
  );
  console.log(`${text.trim().replace(/^/gm, "    ")}\n`);
}
