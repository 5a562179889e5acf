import {
  assertEquals,
  assertRejects,
  assertStringIncludes,
  assertThrows,
} from "@std/assert";
import { ModelFormatError } from "../../src/errors.ts";
import { openModelFolder } from "../../src/model/model_folder.ts";
import { loadWeights } from "../../src/model/weights.ts";
import { FakeBackend } from "./fake_backend.ts";
import {
  type Files,
  shardedFiles,
  TestFolder,
  tinyConfig,
  tinyFiles,
} from "./fixtures.ts";

const docs = new URL("../../examples/models/docs-7m", import.meta.url);

Deno.test("the example model opens and loads", async () => {
  using model = await openModelFolder(docs);
  assertEquals(model.config.sizes.vocabulary, model.tokenizer.size);
  assertEquals(model.eosIds, [0, 2]);
  assertEquals(model.generation, { eosIds: [0, 2], doSample: false });
  assertEquals(
    model.chatTemplate.render([{ role: "user", content: "Hi" }]),
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
  );
  const backend = new FakeBackend({ halfBytes: 2 });
  using weights = await loadWeights(backend, model);
  // The model card counts 7,344,384 parameters; norms take twice the bytes.
  assertEquals(weights.byteLength, 2 * 7_344_384 + 2 * 17 * 256);
});

Deno.test("a folder may be a path or a URL in either form", async () => {
  await using folder = await TestFolder.create(shardedFiles());
  using byPath = await openModelFolder(folder.path);
  using byUrl = await openModelFolder(new URL(`file://${folder.path}`));
  using byText = await openModelFolder(`file://${folder.path}/`);
  assertEquals(byPath.config, byUrl.config);
  assertEquals(byText.checkpoint.tensors.size, byPath.checkpoint.tensors.size);
  await assertRejects(
    () => openModelFolder(new URL("https://example.com/model")),
    TypeError,
  );
});

Deno.test("optional files may be missing", async () => {
  const { "generation_config.json": _, "tokenizer_config.json": __, ...files } =
    tinyFiles();
  await using folder = await TestFolder.create(files);
  using model = await openModelFolder(folder.path);
  assertEquals(model.generation, {});
  assertEquals(model.eosIds, [2]);
  assertEquals(model.tokenizer.specialTokens, {});
  assertThrows(
    () => model.chatTemplate.render([{ role: "user", content: "Hi" }]),
    TypeError,
    "the model has no chat template",
  );
});

Deno.test("chat_template.jinja goes before tokenizer_config.json", async () => {
  await using folder = await TestFolder.create({
    ...tinyFiles(),
    "chat_template.jinja": "{{ bos_token }}from a file",
  });
  using model = await openModelFolder(folder.path);
  assertEquals(
    model.chatTemplate.render([{ role: "user", content: "Hi" }]),
    "<s>from a file",
  );
});

Deno.test("losses of heads are read with the model", async () => {
  const heads = [[0.5, 0.25], [1, 0.125]];
  const losses = { budgets: [8, 16], tokens: 32, loss: [heads, heads] };
  await using folder = await TestFolder.create({
    ...tinyFiles(),
    "head_losses.json": JSON.stringify(losses),
  });
  using model = await openModelFolder(folder.path);
  assertEquals(model.headLosses, losses);
});

for (const name of ["config.json", "tokenizer.json", "model.safetensors"]) {
  Deno.test(`a folder without ${name} is rejected by that name`, async () => {
    const { [name]: _, ...files } = tinyFiles();
    await using folder = await TestFolder.create(files);
    const error = await assertRejects(
      () => openModelFolder(folder.path),
      ModelFormatError,
      "the file is missing",
    );
    assertEquals(error.file, folder.file(name));
  });
}

const badFiles: [string, Files, string][] = [
  ["config.json", { "config.json": "{" }, "the JSON is damaged"],
  [
    "generation_config.json",
    { "generation_config.json": '{"top_p": 7}' },
    "top_p is 7, expected a number up to 1",
  ],
  ["tokenizer.json", { "tokenizer.json": "{}" }, "model is missing"],
  [
    "tokenizer_config.json",
    { "tokenizer_config.json": '{"chat_template": 1}' },
    "chat_template is 1, expected",
  ],
  [
    "chat_template.jinja",
    { "chat_template.jinja": "{% if %}" },
    "chat_template cannot be parsed",
  ],
  ["head_losses.json", { "head_losses.json": "{}" }, "budgets is missing"],
  [
    "head_losses.json",
    {
      "head_losses.json": JSON.stringify(
        { budgets: [8], tokens: 9, loss: [[[1], [1]]] },
      ),
    },
    "loss has 1 layers of 2 heads, expected 2 layers of 2 KV heads",
  ],
  [
    "model.safetensors",
    { "model.safetensors": "short" },
    "the file has 5 bytes",
  ],
  [
    "tokenizer.json",
    { "config.json": JSON.stringify(tinyConfig({ vocab_size: 280 })) },
    "the vocabulary has ids up to 280, expected ids below vocab_size of config.json, which is 280",
  ],
];

for (const [name, files, says] of badFiles) {
  Deno.test(`a folder where ${name}: ${says}`, async () => {
    await using folder = await TestFolder.create({ ...tinyFiles(), ...files });
    const error = await assertRejects(
      () => openModelFolder(folder.path),
      ModelFormatError,
    );
    assertStringIncludes(error.message, says);
    assertEquals(error.file, folder.file(name));
  });
}

Deno.test("a folder that is none is rejected", async () => {
  await using folder = await TestFolder.create({ "a file": "" });
  for (const name of ["nowhere", "a file", "a file/below"]) {
    const error = await assertRejects(
      () => openModelFolder(folder.file(name)),
      ModelFormatError,
      "there is no such folder",
    );
    assertEquals(error.file, folder.file(name));
  }
});
