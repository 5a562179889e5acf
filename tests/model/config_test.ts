import { assertEquals, assertStringIncludes, assertThrows } from "@std/assert";
import { ModelFormatError } from "../../src/errors.ts";
import { type ModelConfig, parseModelConfig } from "../../src/model/config.ts";
import { parseGenerationConfig } from "../../src/model/generation_config.ts";
import { type ConfigJson, tinyConfig } from "./fixtures.ts";

function parse(config: ConfigJson): ModelConfig {
  return parseModelConfig(JSON.stringify(config), "config.json");
}

/** The fields that every architecture needs, and nothing else. */
function bare(architecture: string): ConfigJson {
  return {
    architectures: [architecture],
    hidden_size: 64,
    intermediate_size: 96,
    num_hidden_layers: 3,
    num_attention_heads: 32,
    vocab_size: 100,
  };
}

Deno.test("the example model has the sizes of its card", async () => {
  const file = new URL(
    "../../examples/models/docs-7m/config.json",
    import.meta.url,
  );
  assertEquals(parseModelConfig(await Deno.readTextFile(file), "config.json"), {
    architecture: "LlamaForCausalLM",
    sizes: {
      hidden: 256,
      heads: 4,
      kvHeads: 2,
      headDim: 64,
      ffn: 768,
      vocabulary: 4096,
      normEpsilon: 1e-5,
    },
    layers: 8,
    contextLength: 4096,
    tiedHead: true,
    attentionBias: "none",
    mlpBias: false,
    qkNorm: false,
    rope: { type: "default", theta: 10_000 },
    bosId: 0,
    eosIds: [0],
  });
});

Deno.test("the old and the new form of a file say the same", () => {
  const { rope_parameters: _, dtype: __, ...common } = tinyConfig();
  const scaling = {
    factor: 8,
    low_freq_factor: 1,
    high_freq_factor: 4,
    original_max_position_embeddings: 32,
  };
  const old = parse({
    ...common,
    torch_dtype: "bfloat16",
    rope_theta: 500_000,
    rope_scaling: { type: "llama3", ...scaling },
  });
  const recent = parse({
    ...common,
    dtype: "bfloat16",
    rope_parameters: {
      rope_type: "llama3",
      rope_theta: 500_000,
      ...scaling,
    },
  });
  assertEquals(old, recent);
  assertEquals(old.rope, {
    type: "llama3",
    theta: 500_000,
    factor: 8,
    lowFrequencyFactor: 1,
    highFrequencyFactor: 4,
    originalContextLength: 32,
  });
  const plain = parse({ ...common, rope_theta: 500_000, rope_scaling: null });
  assertEquals(plain.rope, { type: "default", theta: 500_000 });
});

Deno.test("missing fields have the defaults of the config classes", () => {
  const common = {
    sizes: {
      hidden: 64,
      heads: 32,
      kvHeads: 32,
      headDim: 2,
      ffn: 96,
      vocabulary: 100,
      normEpsilon: 1e-6,
    },
    layers: 3,
    tiedHead: false,
    attentionBias: "none",
    mlpBias: false,
    qkNorm: false,
    rope: { type: "default", theta: 10_000 },
  } as const;
  assertEquals(parse(bare("LlamaForCausalLM")), {
    ...common,
    architecture: "LlamaForCausalLM",
    contextLength: 2048,
    bosId: 1,
    eosIds: [2],
  });
  assertEquals(
    parse({ ...bare("MistralForCausalLM"), sliding_window: null }),
    {
      ...common,
      architecture: "MistralForCausalLM",
      sizes: { ...common.sizes, kvHeads: 8 },
      contextLength: 131_072,
      bosId: 1,
      eosIds: [2],
    },
  );
  assertEquals(parse(bare("Qwen2ForCausalLM")), {
    ...common,
    architecture: "Qwen2ForCausalLM",
    attentionBias: "qkv",
    contextLength: 32_768,
    eosIds: [],
  });
  assertEquals(parse(bare("Qwen3ForCausalLM")), {
    ...common,
    architecture: "Qwen3ForCausalLM",
    sizes: { ...common.sizes, headDim: 128 },
    qkNorm: true,
    contextLength: 32_768,
    eosIds: [],
  });
});

Deno.test("a model type stands in for missing architectures", () => {
  const { architectures: _, ...config } = bare("");
  assertEquals(
    parse({ ...config, model_type: "qwen3" }).architecture,
    "Qwen3ForCausalLM",
  );
});

Deno.test("biases follow the architecture", () => {
  const biases = (name: string): ModelConfig["attentionBias"] =>
    parse({ ...bare(name), attention_bias: true, sliding_window: null })
      .attentionBias;
  assertEquals(biases("LlamaForCausalLM"), "qkvo");
  assertEquals(biases("MistralForCausalLM"), "none");
  assertEquals(biases("Qwen2ForCausalLM"), "qkv");
  assertEquals(biases("Qwen3ForCausalLM"), "qkvo");
  assertEquals(parse({ ...tinyConfig(), mlp_bias: true }).mlpBias, true);
});

Deno.test("end ids may be one, many, none or out of reach", () => {
  const eosIds = (eos_token_id: unknown): readonly number[] =>
    parse(tinyConfig({ eos_token_id })).eosIds;
  assertEquals(eosIds(7), [7]);
  assertEquals(eosIds([7, 9]), [7, 9]);
  assertEquals(eosIds(null), []);
  assertEquals(eosIds([7, 300]), [7]);
});

Deno.test("a window that hides nothing is accepted", () => {
  const mistral = bare("MistralForCausalLM");
  parse({ ...mistral, max_position_embeddings: 4096 });
  parse({ ...mistral, max_position_embeddings: 512, sliding_window: 512 });
  const qwen = { ...bare("Qwen2ForCausalLM"), sliding_window: 16 };
  parse({ ...qwen, use_sliding_window: false });
  // With as many full layers as there are layers, no layer has a window.
  parse({ ...qwen, use_sliding_window: true, max_window_layers: 3 });
  parse({
    ...qwen,
    use_sliding_window: true,
    layer_types: new Array(3).fill("full_attention"),
  });
});

/** Changes to a good file, and what the error must say. */
const badConfigs: [string, ConfigJson, string][] = [
  [
    "another architecture",
    { architectures: ["GPT2LMHeadModel"] },
    'architectures is "GPT2LMHeadModel", expected one of LlamaForCausalLM, Mistral',
  ],
  [
    "no architecture",
    { architectures: undefined, model_type: undefined },
    "model_type is undefined, expected one of llama, mistral, qwen2, qwen3",
  ],
  [
    "architectures that are no list",
    { architectures: "LlamaForCausalLM" },
    'architectures is "LlamaForCausalLM", expected a list of names',
  ],
  ["no sizes", { hidden_size: undefined }, "hidden_size is missing"],
  [
    "a size of 0",
    { num_hidden_layers: 0 },
    "num_hidden_layers is 0, expected an integer from 1 to",
  ],
  ["a negative size", { vocab_size: -1 }, "vocab_size is -1, expected"],
  ["half a size", { hidden_size: 1.5 }, "hidden_size is 1.5, expected"],
  [
    "a huge size",
    { hidden_size: 2 ** 60 },
    "hidden_size is 1152921504606847000, expected",
  ],
  ["a size in words", { vocab_size: "many" }, 'vocab_size is "many", expected'],
  [
    "heads that cannot be shared",
    { num_key_value_heads: 3 },
    "num_key_value_heads is 3, expected a divisor of num_attention_heads, which is 4",
  ],
  ["an odd head", { head_dim: 3 }, "head_dim is 3, expected an even number"],
  [
    "more heads than width",
    { head_dim: null, num_attention_heads: 16 },
    "head_dim is 0, expected an even number",
  ],
  [
    "another activation",
    { hidden_act: "gelu" },
    'hidden_act is "gelu", expected "silu"',
  ],
  [
    "quantized weights",
    { quantization_config: { bits: 4 } },
    "quantization_config is an object, expected full-precision weights",
  ],
  ["another type", { dtype: "int8" }, 'dtype is "int8", expected one of'],
  ["a norm without room", { rms_norm_eps: 0 }, "rms_norm_eps is 0, expected"],
  [
    "a flag that is none",
    { tie_word_embeddings: 1 },
    "tie_word_embeddings is 1, expected true or false",
  ],
  [
    "end ids that are none",
    { eos_token_id: ["</s>"] },
    "eos_token_id is an array, expected an id or a list of ids",
  ],
  [
    "an unknown rope type",
    { rope_parameters: { rope_type: "longrope" } },
    'rope_parameters.rope_type is "longrope", expected one of default, linear, dynamic, llama3, yarn',
  ],
  [
    "a rope type without its factor",
    { rope_parameters: null, rope_scaling: { type: "linear" } },
    "rope_scaling.factor is missing, expected a number for rope type linear",
  ],
  [
    "a rope factor of 0",
    { rope_parameters: { rope_type: "linear", factor: 0 } },
    "rope_parameters.factor is 0, expected a number above 0",
  ],
  [
    "llama3 factors in the wrong order",
    {
      rope_parameters: {
        rope_type: "llama3",
        factor: 8,
        low_freq_factor: 4,
        high_freq_factor: 4,
      },
    },
    "rope_parameters.high_freq_factor is 4, expected more than low_freq_factor",
  ],
  [
    "half rotated heads",
    { rope_parameters: { partial_rotary_factor: 0.5 } },
    "partial_rotary_factor is 0.5, expected 1",
  ],
  [
    "a rope for each kind of layer",
    { rope_parameters: { full_attention: { rope_type: "default" } } },
    "rope_parameters.full_attention is an object, expected one set",
  ],
  [
    "a rope that is none",
    { rope_parameters: 5 },
    "rope_parameters is 5, expected an object",
  ],
  [
    "heads too narrow for dynamic scaling",
    { head_dim: 2, rope_parameters: { rope_type: "dynamic", factor: 2 } },
    "head_dim is 2, expected at least 4 for rope type dynamic",
  ],
  [
    "a window of Mistral",
    {
      architectures: ["MistralForCausalLM"],
      max_position_embeddings: 8192,
      sliding_window: 4096,
    },
    "sliding_window is 4096, expected null or at least max_position_embeddings, which is 8192",
  ],
  [
    "the default window of Mistral",
    { architectures: ["MistralForCausalLM"], max_position_embeddings: 8192 },
    "sliding_window is 4096, expected",
  ],
  [
    "a window of Qwen",
    {
      architectures: ["Qwen2ForCausalLM"],
      use_sliding_window: true,
      max_window_layers: 1,
      sliding_window: 16,
    },
    "sliding_window is 16, expected",
  ],
  [
    "layers with a window",
    { layer_types: ["full_attention", "sliding_attention"], sliding_window: 8 },
    "sliding_window is 8, expected",
  ],
  [
    "layers of another kind",
    { layer_types: ["linear_attention"] },
    'layer_types has "linear_attention", expected full_attention or',
  ],
];

for (const [name, changes, says] of badConfigs) {
  Deno.test(`a config with ${name} is rejected`, () => {
    const error = assertThrows(
      () => parse(tinyConfig(changes)),
      ModelFormatError,
    );
    assertStringIncludes(error.message, `Cannot load config.json: ${says}`);
    assertEquals(error.file, "config.json");
  });
}

Deno.test("JSON that is damaged, doubled or no object is rejected", () => {
  const cases: [string, string][] = [
    ["", "the JSON is damaged"],
    ['{"hidden_size": NaN}', "the JSON is damaged"],
    ["5", "the JSON is 5, expected an object"],
    ["null", "the JSON is null, expected an object"],
    ['{"a": {"b": 1, "\\u0062": 2}}', 'key "b" occurs twice'],
    ['{"a": ["x", {"a": 1}, "a"], "a": 1}', 'key "a" occurs twice'],
  ];
  for (const [text, says] of cases) {
    assertThrows(() => parseModelConfig(text, "f"), ModelFormatError, says);
  }
  // None of these is a duplicate.
  const text = JSON.stringify(tinyConfig({
    extra: { a: ["a", "a", { a: "a" }], b: { a: 1 }, '\\"a': 1, '\\\\"': 1 },
  }));
  parseModelConfig(text, "f");
});

Deno.test("deeply nested JSON neither hangs nor overflows", () => {
  const deep = "[".repeat(200_000) + "]".repeat(200_000);
  assertThrows(
    () => parseModelConfig(`{"architectures": ${deep}}`, "f"),
    ModelFormatError,
  );
});

Deno.test("generation_config.json gives what it has", () => {
  const parse = (fields: ConfigJson): unknown =>
    parseGenerationConfig(JSON.stringify(fields), "generation_config.json");
  assertEquals(parse({}), {});
  assertEquals(
    parse({ eos_token_id: null, temperature: null, transformers_version: "5" }),
    {},
  );
  assertEquals(
    parse({
      eos_token_id: 2,
      do_sample: true,
      temperature: 0.6,
      top_k: 20,
      top_p: 0.95,
      min_p: 0,
      repetition_penalty: 1.1,
    }),
    {
      eosIds: [2],
      doSample: true,
      temperature: 0.6,
      topK: 20,
      topP: 0.95,
      minP: 0,
      repetitionPenalty: 1.1,
    },
  );
  for (
    const [field, value] of Object.entries({
      eos_token_id: [-1],
      do_sample: "no",
      temperature: -1,
      top_k: 1.5,
      top_p: 1.5,
      min_p: 2,
      repetition_penalty: 0,
    })
  ) {
    assertThrows(
      () => parse({ [field]: value }),
      ModelFormatError,
      `${field} is `,
    );
  }
});
