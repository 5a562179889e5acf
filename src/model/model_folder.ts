/**
 * A folder in the layout of Hugging Face: everything that is needed to run a
 * model, read and checked.
 *
 * @module
 */
import { fromFileUrl, join } from "@std/path";
import { ModelFormatError } from "../errors.ts";
import type { HeadLosses } from "../policies/allocations/head_losses.ts";
import { ChatTemplate, findChatTemplate } from "../tokens/chat_template.ts";
import { Tokenizer } from "../tokens/tokenizer.ts";
import type { SourceText } from "../tokens/tokenizer_files.ts";
import { type Checkpoint, openCheckpoint } from "./checkpoint.ts";
import { type ModelConfig, parseModelConfig } from "./config.ts";
import {
  type GenerationConfig,
  parseGenerationConfig,
} from "./generation_config.ts";
import { HEAD_LOSSES_FILE, readHeadLosses } from "./head_losses_file.ts";
import { exists, isMissing, readText } from "./json.ts";

/** An open model folder. Disposing closes its files. */
export interface ModelFolder extends Disposable {
  /** Path of the folder. */
  readonly path: string;
  /** `config.json`. */
  readonly config: ModelConfig;
  /** `generation_config.json`; empty where the folder has none. */
  readonly generation: GenerationConfig;
  /** Ids that end a text, from whichever of the two files has the say. */
  readonly eosIds: readonly number[];
  /** `tokenizer.json` and `tokenizer_config.json`. */
  readonly tokenizer: Tokenizer;
  /** `chat_template.jinja`, or what `tokenizer_config.json` has instead. */
  readonly chatTemplate: ChatTemplate;
  /** `head_losses.json` of `deno task calibrate`, where the folder has one. */
  readonly headLosses: HeadLosses | undefined;
  /** The weights, still on disk. */
  readonly checkpoint: Checkpoint;
}

/**
 * Opens a model folder: `config.json`, `tokenizer.json` and the weights must be
 * there, `generation_config.json`, `tokenizer_config.json`,
 * `chat_template.jinja` and `head_losses.json` may be. Needs permission to read the folder.
 *
 * @param folder Path or `file:` URL.
 * @throws {ModelFormatError} If a file is missing, damaged or contradicts
 * another one.
 * @throws {TypeError} If a URL is not a `file:` URL.
 */
export async function openModelFolder(
  folder: string | URL,
): Promise<ModelFolder> {
  const path = folder instanceof URL || folder.startsWith("file:")
    ? fromFileUrl(folder)
    : folder;
  const source = async (name: string): Promise<SourceText> => {
    const file = join(path, name);
    return { file, text: await readText(file) };
  };
  const optional = async (name: string): Promise<SourceText | undefined> => {
    return await exists(join(path, name)) ? await source(name) : undefined;
  };

  await checkFolder(path);
  const { file, text } = await source("config.json");
  const config = parseModelConfig(text, file);
  const generationFile = await optional("generation_config.json");
  const generation = generationFile
    ? parseGenerationConfig(generationFile.text, generationFile.file)
    : {};
  const tokenizerFile = await source("tokenizer.json");
  const settings = await optional("tokenizer_config.json");
  const tokenizer = new Tokenizer(tokenizerFile, settings);
  checkVocabulary(tokenizer, { config, file: tokenizerFile.file });
  const template = await optional("chat_template.jinja") ??
    (settings && findChatTemplate(settings));
  const chatTemplate = new ChatTemplate(template, tokenizer.specialTokens);
  const lossesFile = join(path, HEAD_LOSSES_FILE);
  const headLosses = await exists(lossesFile)
    ? await readHeadLosses(lossesFile)
    : undefined;
  checkHeads(headLosses, { config, file: lossesFile });
  // Last, so that an error above leaves no file open.
  const checkpoint = await openCheckpoint(path);
  return {
    path,
    config,
    generation,
    eosIds: generation.eosIds ?? config.eosIds,
    tokenizer,
    chatTemplate,
    headLosses,
    checkpoint,
    [Symbol.dispose]: () => checkpoint[Symbol.dispose](),
  };
}

/** Rejects a tokenizer that makes ids which the model has no embedding for. */
function checkVocabulary(
  tokenizer: Tokenizer,
  { config, file }: { config: ModelConfig; file: string },
): void {
  const { vocabulary } = config.sizes;
  if (tokenizer.size <= vocabulary) return;
  throw new ModelFormatError(
    file,
    `the vocabulary has ids up to ${
      tokenizer.size - 1
    }, expected ids below vocab_size of config.json, which is ${vocabulary}`,
  );
}

/** Rejects losses of a model with other heads. */
function checkHeads(
  losses: HeadLosses | undefined,
  { config, file }: { config: ModelConfig; file: string },
): void {
  if (losses === undefined) return;
  const { layers, sizes: { kvHeads } } = config;
  const found = [losses.loss.length, losses.loss[0]!.length];
  if (found[0] === layers && found[1] === kvHeads) return;
  throw new ModelFormatError(
    file,
    `loss has ${found[0]} layers of ${
      found[1]
    } heads, expected ${layers} layers of ${kvHeads} KV heads as in config.json`,
  );
}

/** Rejects a path that is not a folder. */
async function checkFolder(path: string): Promise<void> {
  let isFolder = false;
  let cause: unknown;
  try {
    isFolder = (await Deno.stat(path)).isDirectory;
  } catch (error) {
    if (!isMissing(error)) throw error;
    cause = error;
  }
  if (isFolder) return;
  throw new ModelFormatError(
    path,
    "there is no such folder, expected a folder with config.json",
    { cause },
  );
}
