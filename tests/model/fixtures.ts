/** Model files for tests, built byte by byte, and folders to put them in. */
import { join } from "@std/path";
import { sentencePieceJson } from "../tokens/fixtures.ts";

/** A tensor to write. */
export interface TestTensor {
  readonly shape: readonly number[];
  readonly values: ArrayLike<number>;
  /** BF16 unless told otherwise. */
  readonly type?: "BF16" | "F16" | "F32";
}

/** Fields of a `config.json`. */
export type ConfigJson = Record<string, unknown>;

/** A `config.json` of a model that is as small as a model can be. */
export function tinyConfig(changes: ConfigJson = {}): ConfigJson {
  return {
    architectures: ["LlamaForCausalLM"],
    model_type: "llama",
    hidden_size: 8,
    intermediate_size: 6,
    num_hidden_layers: 2,
    num_attention_heads: 4,
    num_key_value_heads: 2,
    head_dim: 4,
    vocab_size: 300,
    max_position_embeddings: 64,
    hidden_act: "silu",
    rms_norm_eps: 1e-5,
    rope_parameters: { rope_type: "default", rope_theta: 10_000 },
    tie_word_embeddings: true,
    bos_token_id: 1,
    eos_token_id: 2,
    dtype: "bfloat16",
    ...changes,
  };
}

/** Which optional tensors a model has. */
export interface TensorChoice {
  readonly tied?: boolean;
  readonly bias?: "none" | "qkv" | "qkvo";
  readonly mlpBias?: boolean;
  readonly qkNorm?: boolean;
  readonly type?: TestTensor["type"];
}

/**
 * The tensors of {@linkcode tinyConfig}. All values are different from their
 * neighbours, small integers, and so the same in every float type.
 */
export function tinyTensors(
  { tied = true, bias = "none", mlpBias, qkNorm, type = "BF16" }: TensorChoice =
    {},
): Map<string, TestTensor> {
  const tensors = new Map<string, TestTensor>();
  const add = (name: string, ...shape: number[]): void => {
    const start = tensors.size;
    const length = shape.reduce((a, b) => a * b, 1);
    const values = Array.from(
      { length },
      (_, i) => (start * 31 + i * 7) % 251 - 125,
    );
    tensors.set(name, { shape, values, type });
  };
  add("model.embed_tokens.weight", 300, 8);
  for (let layer = 0; layer < 2; layer++) {
    const path = `model.layers.${layer}`;
    add(`${path}.input_layernorm.weight`, 8);
    add(`${path}.post_attention_layernorm.weight`, 8);
    for (const [name, rows] of [["q", 16], ["k", 8], ["v", 8]] as const) {
      add(`${path}.self_attn.${name}_proj.weight`, rows, 8);
      if (bias !== "none") add(`${path}.self_attn.${name}_proj.bias`, rows);
    }
    add(`${path}.self_attn.o_proj.weight`, 8, 16);
    if (bias === "qkvo") add(`${path}.self_attn.o_proj.bias`, 8);
    if (qkNorm) {
      add(`${path}.self_attn.q_norm.weight`, 4);
      add(`${path}.self_attn.k_norm.weight`, 4);
    }
    for (const name of ["gate", "up"]) {
      add(`${path}.mlp.${name}_proj.weight`, 6, 8);
      if (mlpBias) add(`${path}.mlp.${name}_proj.bias`, 6);
    }
    add(`${path}.mlp.down_proj.weight`, 8, 6);
    if (mlpBias) add(`${path}.mlp.down_proj.bias`, 8);
  }
  add("model.norm.weight", 8);
  if (!tied) add("lm_head.weight", 300, 8);
  return tensors;
}

/** The bytes of a safetensors file. */
export function safetensors(
  tensors: ReadonlyMap<string, TestTensor>,
): Uint8Array<ArrayBuffer> {
  const header: Record<string, unknown> = { __metadata__: { format: "pt" } };
  const parts: Uint8Array[] = [];
  let offset = 0;
  for (const [name, { shape, values, type = "BF16" }] of tensors) {
    const bytes = encode(values, type);
    parts.push(bytes);
    header[name] = {
      dtype: type,
      shape,
      data_offsets: [offset, offset + bytes.length],
    };
    offset += bytes.length;
  }
  return withHeader(JSON.stringify(header), concat(parts));
}

/** The bytes of a safetensors file with any header before any data. */
export function withHeader(
  header: string | Uint8Array,
  data: Uint8Array = new Uint8Array(0),
): Uint8Array<ArrayBuffer> {
  const bytes = typeof header === "string"
    ? new TextEncoder().encode(header)
    : header;
  const length = new Uint8Array(8);
  new DataView(length.buffer).setBigUint64(0, BigInt(bytes.length), true);
  return concat([length, bytes, data]);
}

/** Joins arrays. */
export function concat(parts: readonly Uint8Array[]): Uint8Array<ArrayBuffer> {
  const length = parts.reduce((sum, part) => sum + part.length, 0);
  const whole = new Uint8Array(length);
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

/** Values as bytes of a type; bf16 cuts off, so values must fit. */
function encode(
  values: ArrayLike<number>,
  type: NonNullable<TestTensor["type"]>,
): Uint8Array {
  const floats = Float32Array.from(values);
  if (type === "F32") return new Uint8Array(floats.buffer);
  if (type === "F16") return new Uint8Array(new Float16Array(floats).buffer);
  const bits = new Uint32Array(floats.buffer);
  return new Uint8Array(Uint16Array.from(bits, (word) => word >>> 16).buffer);
}

/** Files of a folder by their names. */
export type Files = Record<string, string | Uint8Array>;

/** All files of a tiny model. */
export function tinyFiles(
  changes: ConfigJson = {},
  choice: TensorChoice = {},
): Files {
  return {
    "config.json": JSON.stringify(tinyConfig(changes)),
    "generation_config.json": JSON.stringify({ eos_token_id: [2] }),
    "tokenizer.json": JSON.stringify(sentencePieceJson()),
    "tokenizer_config.json": JSON.stringify({
      bos_token: "<s>",
      eos_token: "</s>",
      chat_template: "{{ messages[0].content }}",
    }),
    "model.safetensors": safetensors(tinyTensors(choice)),
  };
}

/** The same model in two shards with an index. */
export function shardedFiles(): Files {
  const { "model.safetensors": _, ...files } = tinyFiles();
  const tensors = [...tinyTensors()];
  const shards = {
    "model-00001-of-00002.safetensors": tensors.slice(0, 7),
    "model-00002-of-00002.safetensors": tensors.slice(7),
  };
  const weight_map: Record<string, string> = {};
  for (const [shard, entries] of Object.entries(shards)) {
    files[shard] = safetensors(new Map(entries));
    for (const [name] of entries) weight_map[name] = shard;
  }
  files["model.safetensors.index.json"] = JSON.stringify({
    metadata: { total_size: 1 },
    weight_map,
  });
  return files;
}

/** A folder that is removed when disposed. */
export class TestFolder implements AsyncDisposable {
  /** Path of the folder. */
  readonly path: string;

  private constructor(path: string) {
    this.path = path;
  }

  /** Makes a folder with the files. */
  static async create(files: Files = {}): Promise<TestFolder> {
    const folder = new TestFolder(await Deno.makeTempDir());
    for (const [name, content] of Object.entries(files)) {
      await folder.write(name, content);
    }
    return folder;
  }

  /** Path of a file in it. */
  file(name: string): string {
    return join(this.path, name);
  }

  /** Writes a file. */
  async write(name: string, content: string | Uint8Array): Promise<void> {
    if (typeof content === "string") {
      await Deno.writeTextFile(this.file(name), content);
    } else {
      await Deno.writeFile(this.file(name), content);
    }
  }

  /** Removes the folder. */
  async [Symbol.asyncDispose](): Promise<void> {
    await Deno.remove(this.path, { recursive: true });
  }
}
