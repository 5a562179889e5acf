import { assertEquals, assertStringIncludes, assertThrows } from "@std/assert";
import { ModelFormatError } from "../../src/errors.ts";
import {
  type ChatMessage,
  ChatTemplate,
  findChatTemplate,
} from "../../src/tokens/chat_template.ts";

const source = (text: string): { file: string; text: string } => ({
  file: "chat_template.jinja",
  text,
});

const messages: ChatMessage[] = [
  { role: "system", content: "Be brief." },
  { role: "user", content: "Hi <there>" },
];

Deno.test("render gives the text that the example model was trained on", async () => {
  const folder = new URL("../../examples/models/docs-7m/", import.meta.url);
  const file = new URL("tokenizer_config.json", folder);
  const text = await Deno.readTextFile(file);
  const template = new ChatTemplate(
    findChatTemplate({ file: "tokenizer_config.json", text }),
  );
  const chat =
    "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi <there><|im_end|>\n";
  assertEquals(template.render(messages), `${chat}<|im_start|>assistant\n`);
  assertEquals(template.render(messages, { addGenerationPrompt: false }), chat);
});

Deno.test("a template knows special tokens and variables", () => {
  const template = new ChatTemplate(
    source(
      "{{ bos_token }}{% if not enable_thinking %}no {% endif %}{{ messages[0].content | trim }}",
    ),
    { bos_token: "<s>" },
  );
  assertEquals(template.render(messages), "<s>no Be brief.");
  assertEquals(
    template.render(messages, { variables: { enable_thinking: true } }),
    "<s>Be brief.",
  );
});

Deno.test("a template rejects messages in its own words", () => {
  const template = new ChatTemplate(
    source("{{ raise_exception('Roles must alternate') }}"),
  );
  assertThrows(
    () => template.render(messages),
    TypeError,
    "Cannot render the chat: the template says: Roles must alternate",
  );
});

Deno.test("what is not a list of messages is rejected", () => {
  const template = new ChatTemplate(source("{{ messages[0].content }}"));
  const cases: [unknown, string][] = [
    [[], "there are no messages, expected at least one"],
    ["hi", "there are no messages, expected at least one"],
    [[{ role: "user" }], "messages[0].content is undefined, expected a string"],
    [[{ content: "x" }], "messages[0].role is undefined, expected a string"],
    [[...messages, null], "messages[2].role is undefined, expected a string"],
  ];
  for (const [value, says] of cases) {
    const error = assertThrows(
      () => template.render(value as ChatMessage[]),
      TypeError,
    );
    assertStringIncludes(error.message, says);
  }
});

Deno.test("a model without a template rejects chats", () => {
  assertThrows(
    () => new ChatTemplate(undefined).render(messages),
    TypeError,
    "the model has no chat template",
  );
});

Deno.test("a syntax error in a template names the file", () => {
  const error = assertThrows(
    () => new ChatTemplate(source("{% for %}")),
    ModelFormatError,
    "chat_template cannot be parsed",
  );
  assertEquals(error.file, "chat_template.jinja");
});

Deno.test("findChatTemplate understands all forms", () => {
  const find = (chat_template: unknown): string | undefined =>
    findChatTemplate({
      file: "tokenizer_config.json",
      text: JSON.stringify({ chat_template }),
    })?.text;
  const tools = { name: "tool_use", template: "t" };
  assertEquals(find(undefined), undefined);
  assertEquals(find(null), undefined);
  assertEquals(find("a"), "a");
  assertEquals(find([tools]), "t");
  assertEquals(find([tools, { name: "default", template: "d" }]), "d");
  assertThrows(
    () => find([tools, { name: "rag", template: "r" }]),
    ModelFormatError,
    "chat_template has the names tool_use, rag, expected one of them to be default",
  );
  assertThrows(() => find(5), ModelFormatError, "chat_template is 5, expected");
});
