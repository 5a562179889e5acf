import {
  assert,
  assertEquals,
  assertLessOrEqual,
  assertRejects,
  assertStrictEquals,
  assertStringIncludes,
} from "@std/assert";
import { ModelFormatError } from "../../src/errors.ts";
import { openCheckpoint, PIECE_VALUES } from "../../src/model/checkpoint.ts";
import { parseModelConfig } from "../../src/model/config.ts";
import {
  type LoadProgress,
  loadWeights,
  type LoadWeightsOptions,
  type Weights,
} from "../../src/model/weights.ts";
import {
  FakeBackend,
  type FakeBuffer,
  type FakeMatrix,
} from "./fake_backend.ts";
import {
  type ConfigJson,
  safetensors,
  TestFolder,
  type TestTensor,
  tinyConfig,
  tinyTensors,
} from "./fixtures.ts";

/** Loads tensors as a model of the given configuration. */
async function load(
  tensors: ReadonlyMap<string, TestTensor>,
  { backend = new FakeBackend(), config = {}, options = {} }: {
    backend?: FakeBackend;
    config?: ConfigJson;
    options?: LoadWeightsOptions;
  } = {},
): Promise<Weights> {
  await using folder = await TestFolder.create({
    "model.safetensors": safetensors(tensors),
  });
  using checkpoint = await openCheckpoint(folder.path);
  const text = JSON.stringify(tinyConfig(config));
  return await loadWeights(
    backend,
    { checkpoint, config: parseModelConfig(text, "config.json") },
    options,
  );
}

/** What the fake backend holds for a weight. */
function valuesOf(weight: unknown): number[] {
  return [...(weight as FakeBuffer | FakeMatrix).values];
}

/** Reads tensors of layer 0 from a map. */
function layerReader(
  tensors: ReadonlyMap<string, TestTensor>,
): (name: string) => number[] {
  return (name) => Array.from(tensors.get(`model.layers.0.${name}`)!.values);
}

/** Rows of two arrays in turn. */
function interleave(a: number[], b: number[], columns: number): number[] {
  return Array.from({ length: a.length / columns }, (_, row) => [
    ...a.slice(row * columns, (row + 1) * columns),
    ...b.slice(row * columns, (row + 1) * columns),
  ]).flat();
}

for (const type of ["BF16", "F16", "F32"] as const) {
  Deno.test(`${type} tensors become stacked weights`, async () => {
    const tensors = tinyTensors({ type });
    const tensor = layerReader(tensors);
    const backend = new FakeBackend();
    using weights = await load(tensors, { backend });
    const layer = weights.layers[0]!;
    assertEquals(weights.layers.length, 2);
    assertEquals(
      valuesOf(weights.embedding),
      Array.from(tensors.get("model.embed_tokens.weight")!.values),
    );
    assertEquals(valuesOf(layer.qkv), [
      ...tensor("self_attn.q_proj.weight"),
      ...tensor("self_attn.k_proj.weight"),
      ...tensor("self_attn.v_proj.weight"),
    ]);
    assertEquals(
      valuesOf(layer.output),
      tensor("self_attn.o_proj.weight"),
    );
    assertEquals(
      valuesOf(layer.gateUp),
      interleave(
        tensor("mlp.gate_proj.weight"),
        tensor("mlp.up_proj.weight"),
        8,
      ),
    );
    assertEquals(valuesOf(layer.down), tensor("mlp.down_proj.weight"));
    assertEquals(
      valuesOf(layer.attentionNorm),
      tensor("input_layernorm.weight"),
    );
    assertEquals(
      valuesOf(layer.ffnNorm),
      tensor("post_attention_layernorm.weight"),
    );
    assertEquals(
      valuesOf(weights.norm),
      Array.from(tensors.get("model.norm.weight")!.values),
    );
    assertStrictEquals(weights.head, weights.embedding);
    const shapes = [layer.qkv, layer.output, layer.gateUp, layer.down];
    assertEquals(
      shapes.map((m) => [m.rows, m.columns, (m as FakeMatrix).rowGroup]),
      [[32, 8, 4], [8, 16, 1], [12, 8, 2], [8, 6, 1]],
    );
    assertEquals(weights.byteLength, backend.bytesAllocated);
    assertEquals(
      [layer.qkvBias, layer.outputBias, layer.gateUpBias, layer.downBias],
      [undefined, undefined, undefined, undefined],
    );
  });
}

Deno.test("biases and head norms are loaded where the model has them", async () => {
  const llama = tinyTensors({ bias: "qkvo", mlpBias: true });
  const tensor = layerReader(llama);
  using weights = await load(llama, {
    config: { attention_bias: true, mlp_bias: true },
  });
  const layer = weights.layers[0]!;
  assertEquals(valuesOf(layer.qkvBias), [
    ...tensor("self_attn.q_proj.bias"),
    ...tensor("self_attn.k_proj.bias"),
    ...tensor("self_attn.v_proj.bias"),
  ]);
  assertEquals(valuesOf(layer.outputBias), tensor("self_attn.o_proj.bias"));
  assertEquals(
    valuesOf(layer.gateUpBias),
    interleave(tensor("mlp.gate_proj.bias"), tensor("mlp.up_proj.bias"), 1),
  );
  assertEquals(valuesOf(layer.downBias), tensor("mlp.down_proj.bias"));
  assertEquals(layer.queryNorm, undefined);

  using qwen2 = await load(tinyTensors({ bias: "qkv" }), {
    config: { architectures: ["Qwen2ForCausalLM"] },
  });
  assertEquals(qwen2.layers[1]!.qkvBias?.length, 32);
  assertEquals(qwen2.layers[1]!.outputBias, undefined);

  const normed = tinyTensors({ qkNorm: true });
  using qwen3 = await load(normed, {
    config: { architectures: ["Qwen3ForCausalLM"] },
  });
  const { queryNorm, keyNorm } = qwen3.layers[0]!;
  assertEquals(
    [valuesOf(queryNorm), valuesOf(keyNorm)],
    ["q_norm", "k_norm"].map((name) =>
      layerReader(normed)(`self_attn.${name}.weight`)
    ),
  );
});

Deno.test("an untied head is a matrix of its own", async () => {
  const tensors = tinyTensors({ tied: false });
  using weights = await load(tensors, {
    config: { tie_word_embeddings: false },
  });
  assert(weights.head !== weights.embedding);
  assertEquals(
    valuesOf(weights.head),
    Array.from(tensors.get("lm_head.weight")!.values),
  );
});

Deno.test("old checkpoints' harmless tensors are passed over", async () => {
  const tensors = tinyTensors({ tied: false });
  tensors.set("model.layers.0.self_attn.rotary_emb.inv_freq", {
    shape: [2],
    values: [1, 0.5],
    type: "F32",
  });
  using weights = await load(tensors);
  assertStrictEquals(weights.head, weights.embedding);
});

Deno.test("progress counts every byte of both stages", async () => {
  for (const verify of [true, false]) {
    const seen: LoadProgress[] = [];
    using _ = await load(tinyTensors(), {
      options: { verify, onProgress: (progress) => seen.push(progress) },
    });
    const stages = verify ? ["check", "upload"] as const : ["upload"] as const;
    assertEquals([...new Set(seen.map(({ stage }) => stage))], [...stages]);
    for (const stage of stages) {
      const bytes = seen.filter((p) => p.stage === stage).map((p) => p.bytes);
      assert(bytes.every((n, i) => i === 0 || n > bytes[i - 1]!), stage);
      assertEquals(bytes.at(-1), seen[0]!.totalBytes);
    }
    const values = tinyTensors().values()
      .reduce((sum, { values }) => sum + values.length, 0);
    assertEquals(seen[0]!.totalBytes, values * 2);
  }
});

Deno.test("the host holds pieces, not tensors", async () => {
  // The embedding is three pieces and a bit.
  const [rows, hidden] = [3 * PIECE_VALUES / 64 + 5, 64];
  const tensors = new Map<string, TestTensor>([
    ["model.embed_tokens.weight", {
      shape: [rows, hidden],
      values: new Float32Array(rows * hidden).map((_, i) => i % 256),
    }],
    ["model.norm.weight", { shape: [hidden], values: new Array(64).fill(1) }],
  ]);
  for (
    const [name, ...shape] of [
      ["input_layernorm", hidden],
      ["post_attention_layernorm", hidden],
      ["self_attn.q_proj", 64, hidden],
      ["self_attn.k_proj", 64, hidden],
      ["self_attn.v_proj", 64, hidden],
      ["self_attn.o_proj", hidden, 64],
      ["mlp.gate_proj", 2, hidden],
      ["mlp.up_proj", 2, hidden],
      ["mlp.down_proj", hidden, 2],
    ] as const
  ) {
    const length = (shape as number[]).reduce((a, b) => a * b, 1);
    tensors.set(`model.layers.0.${name}.weight`, {
      shape,
      values: new Array(length).fill(1),
    });
  }
  const backend = new FakeBackend();
  using weights = await load(tensors, {
    backend,
    config: {
      vocab_size: rows,
      hidden_size: hidden,
      num_hidden_layers: 1,
      num_attention_heads: 1,
      num_key_value_heads: 1,
      head_dim: 64,
      intermediate_size: 2,
    },
  });
  assertLessOrEqual(backend.largestWrite, PIECE_VALUES);
  const { values } = weights.embedding as FakeMatrix;
  assert(values.every((value, i) => value === i % 256));
});

/** Changes to the tensors that must be found before memory is allocated. */
const badModels: [
  string,
  (tensors: Map<string, TestTensor>) => void,
  string,
  ConfigJson?,
][] = [
  [
    "a tensor missing",
    (t) => t.delete("model.layers.1.mlp.up_proj.weight"),
    'tensor "model.layers.1.mlp.up_proj.weight" is missing, expected shape [6, 8]',
  ],
  [
    "a bias missing",
    () => {},
    'tensor "model.layers.0.self_attn.q_proj.bias" is missing',
    { attention_bias: true },
  ],
  [
    "no head",
    () => {},
    'tensor "lm_head.weight" is missing, expected shape [300, 8]',
    { tie_word_embeddings: false },
  ],
  [
    "another vocabulary",
    () => {},
    'tensor "model.embed_tokens.weight" has shape [300, 8], expected [301, 8]',
    { vocab_size: 301 },
  ],
  [
    "more layers than tensors",
    () => {},
    'tensor "model.layers.2.input_layernorm.weight" is missing',
    { num_hidden_layers: 3 },
  ],
  [
    "more tensors than layers",
    () => {},
    'tensor "model.layers.1.input_layernorm.weight" is not used, expected only tensors of a LlamaForCausalLM of 1 layers',
    { num_hidden_layers: 1 },
  ],
  [
    "a bias that the configuration denies",
    (t) =>
      t.set("model.layers.0.mlp.down_proj.bias", {
        shape: [8],
        values: new Array(8).fill(0),
      }),
    'tensor "model.layers.0.mlp.down_proj.bias" is not used',
  ],
  [
    "NaN in a norm",
    (t) =>
      t.set("model.norm.weight", {
        shape: [8],
        values: [1, 1, NaN, 1, 1, 1, 1, 1],
      }),
    'tensor "model.norm.weight" has a value at [2] that cannot be used',
  ],
  [
    "infinity in the last matrix",
    (t) =>
      t.set("model.layers.1.mlp.down_proj.weight", {
        shape: [8, 6],
        values: [...new Array(47).fill(1), Infinity],
      }),
    'tensor "model.layers.1.mlp.down_proj.weight" has a value at [7, 5]',
  ],
];

for (const [name, change, says, config = {}] of badModels) {
  Deno.test(`a model with ${name} is rejected before any allocation`, async () => {
    const tensors = tinyTensors();
    change(tensors);
    const backend = new FakeBackend();
    const error = await assertRejects(
      () => load(tensors, { backend, config }),
      ModelFormatError,
    );
    assertStringIncludes(error.message, says);
    assertEquals(backend.allocations, 0);
  });
}

Deno.test("values beyond 16-bit floats are rejected where they are stored so", async () => {
  const tensors = tinyTensors({ type: "F32" });
  const set = (name: string, shape: number[]): void => {
    const length = shape.reduce((a, b) => a * b, 1);
    const values = new Array(length).fill(1e6);
    tensors.set(name, { shape, values, type: "F32" });
  };
  // Vectors are 32-bit floats on every backend.
  set("model.norm.weight", [8]);
  using _ = await load(tensors, { backend: new FakeBackend({ halfBytes: 2 }) });
  set("model.layers.0.mlp.down_proj.weight", [8, 6]);
  using __ = await load(tensors, { backend: new FakeBackend() });
  const backend = new FakeBackend({ halfBytes: 2 });
  await assertRejects(
    () => load(tensors, { backend }),
    ModelFormatError,
    "expected finite numbers of at most 65504 (16-bit floats)",
  );
  assertEquals(backend.allocations, 0);
});

Deno.test("without the check, a bad value is found during the upload", async () => {
  const tensors = tinyTensors();
  tensors.set("model.norm.weight", {
    shape: [8],
    values: new Array(8).fill(NaN),
  });
  const backend = new FakeBackend();
  await assertRejects(
    () => load(tensors, { backend, options: { verify: false } }),
    ModelFormatError,
    'tensor "model.norm.weight" has a value at [0]',
  );
  assert(backend.allocations > 0);
  assertEquals(backend.bytesAllocated, 0);
});

Deno.test("whatever stops loading, all memory is freed", async () => {
  using complete = await load(tinyTensors());
  assert(complete.byteLength > 0);
  // Memory runs out at the third allocation.
  const full = new FakeBackend({ failAt: 3 });
  await assertRejects(
    () => load(tinyTensors(), { backend: full }),
    RangeError,
    "no memory is left",
  );
  assertEquals(full.bytesAllocated, 0);
  // The caller aborts, in either stage and before the start.
  for (const stage of ["check", "upload", undefined]) {
    const backend = new FakeBackend();
    const controller = new AbortController();
    if (stage === undefined) controller.abort();
    await assertRejects(
      () =>
        load(tinyTensors(), {
          backend,
          options: {
            signal: controller.signal,
            onProgress: (progress) => {
              if (progress.stage === stage) controller.abort();
            },
          },
        }),
      DOMException,
      "aborted",
    );
    assertEquals(backend.allocations > 0, stage === "upload");
    assertEquals(backend.bytesAllocated, 0);
  }
  // The caller's own function throws.
  const backend = new FakeBackend();
  const onProgress = ({ stage }: LoadProgress): void => {
    if (stage === "upload") throw new TypeError("no terminal");
  };
  await assertRejects(
    () => load(tinyTensors(), { backend, options: { onProgress } }),
    TypeError,
    "no terminal",
  );
  assertEquals(backend.bytesAllocated, 0);
});

Deno.test("disposing weights frees all memory once", async () => {
  const backend = new FakeBackend();
  const weights = await load(tinyTensors(), { backend });
  assert(backend.bytesAllocated > 0);
  weights[Symbol.dispose]();
  weights[Symbol.dispose]();
  assertEquals(backend.bytesAllocated, 0);
});
