/**
 * Chat messages to the text that a model was trained on.
 *
 * @module
 */
import { Template } from "@huggingface/jinja";
import * as v from "valibot";
import { ModelFormatError } from "../errors.ts";
import { checkSchema, parseJson } from "../model/json.ts";
import type { SourceText } from "./tokenizer_files.ts";

/** One message of a chat. */
export interface ChatMessage {
  /** Who speaks: `system`, `user`, `assistant`, or what the model knows. */
  readonly role: string;
  /** What is said. */
  readonly content: string;
}

/** Options of {@linkcode ChatTemplate.render}. */
export interface RenderOptions {
  /**
   * Whether the text ends where the model begins its answer; true unless told
   * otherwise.
   */
  readonly addGenerationPrompt?: boolean | undefined;
  /** More variables that the template knows, such as `enable_thinking`. */
  readonly variables?: Readonly<Record<string, unknown>> | undefined;
}

/** The chat template of a model, or the lack of one. */
export class ChatTemplate {
  readonly #template: Template | undefined;
  readonly #specialTokens: Readonly<Record<string, string>>;

  /**
   * Constructs a new instance from a Jinja template, and from the special
   * tokens that it may name. A model without a template has one all the same,
   * which rejects every chat.
   *
   * @throws {ModelFormatError} If the template has a syntax error.
   */
  constructor(
    source: SourceText | undefined,
    specialTokens: Readonly<Record<string, string>> = {},
  ) {
    this.#specialTokens = specialTokens;
    if (source === undefined) return;
    try {
      this.#template = new Template(source.text);
    } catch (cause) {
      throw new ModelFormatError(
        source.file,
        `chat_template cannot be parsed: ${reason(cause)}`,
        { cause },
      );
    }
  }

  /**
   * The text of a chat, special tokens included: encode it without adding more.
   *
   * @throws {TypeError} If the model has no template, there is no message, one
   * is not a message, or the template rejects them, as many do when roles do
   * not alternate.
   */
  render(
    messages: readonly ChatMessage[],
    { addGenerationPrompt = true, variables = {} }: RenderOptions = {},
  ): string {
    if (this.#template === undefined) {
      throw new TypeError(
        "Cannot render the chat: the model has no chat template, expected chat_template.jinja or chat_template in tokenizer_config.json",
      );
    }
    checkMessages(messages);
    try {
      return this.#template.render({
        ...this.#specialTokens,
        ...variables,
        messages,
        add_generation_prompt: addGenerationPrompt,
      });
    } catch (cause) {
      throw new TypeError(
        `Cannot render the chat: the template says: ${reason(cause)}`,
        { cause },
      );
    }
  }
}

const Settings = v.object({
  chat_template: v.nullish(
    v.union([
      v.string(),
      v.array(v.object({ name: v.string(), template: v.string() })),
    ], "a template or a list of templates with names"),
  ),
}, "an object");

/**
 * Finds the chat template in the text of a `tokenizer_config.json`: the only
 * one, or the one named `default`.
 *
 * @throws {ModelFormatError} If there are several and none is the default.
 */
export function findChatTemplate(config: SourceText): SourceText | undefined {
  const { file } = config;
  const { chat_template: found } = checkSchema(
    Settings,
    parseJson(config.text, file),
    file,
  );
  if (found === null || found === undefined) return undefined;
  if (typeof found === "string") return { file, text: found };
  const names = found.map(({ name }) => name);
  const text = found.length === 1
    ? found[0]?.template
    : found.find(({ name }) => name === "default")?.template;
  if (text !== undefined) return { file, text };
  throw new ModelFormatError(
    file,
    `chat_template has the names ${
      names.join(", ")
    }, expected one of them to be default`,
  );
}

/** Rejects what is not a list of messages. */
function checkMessages(messages: readonly ChatMessage[]): void {
  if (!Array.isArray(messages) || messages.length === 0) {
    throw new TypeError(
      "Cannot render the chat: there are no messages, expected at least one",
    );
  }
  for (const [i, message] of messages.entries()) {
    for (const field of ["role", "content"] as const) {
      if (typeof message?.[field] === "string") continue;
      throw new TypeError(
        `Cannot render the chat: messages[${i}].${field} is ${typeof message
          ?.[field]}, expected a string`,
      );
    }
  }
}

/** What an error says. */
function reason(cause: unknown): string {
  return cause instanceof Error ? cause.message : String(cause);
}
