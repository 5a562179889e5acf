/**
 * Which tensors of a checkpoint make up which weights of the forward pass.
 *
 * Products that read the same input are stacked into one matrix: q over k over
 * v, and gate and up row by row in turn, so that one kernel reads its input
 * once. The plan is plain data: loading, checking and random weights all walk
 * over it.
 *
 * @module
 */
import type { ModelConfig } from "./config.ts";

/** A tensor and where its rows go. */
export interface TensorPart {
  /** Name of the tensor in the checkpoint. */
  readonly name: string;
  /** Rows of the tensor; its length where it is a vector. */
  readonly rows: number;
  /** Row of the weight that takes its first row. */
  readonly first: number;
  /** Distance between rows in the weight. */
  readonly step: number;
}

/** A weight matrix, stacked from one or more tensors. */
export interface MatrixPlan {
  /** Matrices and vectors are told apart by this. */
  readonly kind: "matrix";
  /** What it is, for error messages. */
  readonly label: string;
  /** Number of outputs. */
  readonly rows: number;
  /** Number of inputs. */
  readonly columns: number;
  /** Rows that a backend must not separate. */
  readonly rowGroup: number;
  /** The tensors it is made of. */
  readonly parts: readonly TensorPart[];
}

/** A weight vector, stacked from one or more tensors. */
export interface VectorPlan {
  /** Matrices and vectors are told apart by this. */
  readonly kind: "vector";
  /** What it is, for error messages. */
  readonly label: string;
  /** Number of values. */
  readonly length: number;
  /** What it does: norms scale, biases add. */
  readonly role: "norm" | "bias";
  /** The tensors it is made of. */
  readonly parts: readonly TensorPart[];
}

/** The weights of one layer, by their names in `LayerWeights`. */
export interface LayerPlan {
  /** Norm before attention. */
  readonly attentionNorm: VectorPlan;
  /** Product that makes queries, keys and values. */
  readonly qkv: MatrixPlan;
  /** Its bias. */
  readonly qkvBias?: VectorPlan;
  /** Norm of each query head. */
  readonly queryNorm?: VectorPlan;
  /** Norm of each key head. */
  readonly keyNorm?: VectorPlan;
  /** Product after attention. */
  readonly output: MatrixPlan;
  /** Its bias. */
  readonly outputBias?: VectorPlan;
  /** Norm before the feed-forward layer. */
  readonly ffnNorm: VectorPlan;
  /** Product that makes gate and up. */
  readonly gateUp: MatrixPlan;
  /** Its bias. */
  readonly gateUpBias?: VectorPlan;
  /** Product that ends the feed-forward layer. */
  readonly down: MatrixPlan;
  /** Its bias. */
  readonly downBias?: VectorPlan;
}

/** The weights of a model, by their names in `Weights`. */
export interface WeightPlan {
  /** Input embedding. */
  readonly embedding: MatrixPlan;
  /** One per layer. */
  readonly layers: readonly LayerPlan[];
  /** Final norm. */
  readonly norm: VectorPlan;
  /** Output embedding, left out where it is the input embedding. */
  readonly head?: MatrixPlan;
}

/** Lists the weights of a model and the tensors they are made of. */
export function planWeights(config: ModelConfig): WeightPlan {
  const { sizes: { hidden, vocabulary }, layers, tiedHead } = config;
  const table = (label: string, name: string): MatrixPlan => ({
    kind: "matrix",
    label,
    rows: vocabulary,
    columns: hidden,
    rowGroup: 1,
    parts: stack([[name, vocabulary]]),
  });
  return {
    embedding: table("embedding", "model.embed_tokens.weight"),
    layers: Array.from({ length: layers }, (_, i) => planLayer(config, i)),
    norm: vector("norm", "norm", stack([["model.norm.weight", hidden]])),
    ...(!tiedHead && { head: table("head", "lm_head.weight") }),
  };
}

/** All weights of a plan, in the order in which they are used. */
export function weightsOf(
  plan: WeightPlan,
): readonly (MatrixPlan | VectorPlan)[] {
  return [
    plan.embedding,
    ...plan.layers.flatMap((layer) => Object.values(layer)),
    plan.norm,
    ...(plan.head ? [plan.head] : []),
  ];
}

/** The weights of layer `index`. */
function planLayer(config: ModelConfig, index: number): LayerPlan {
  const { hidden, heads, kvHeads, headDim, ffn } = config.sizes;
  const path = `model.layers.${index}`;
  const attention = `${path}.self_attn`;
  const label = (name: string): string => `layer ${index} ${name}`;
  const projection = (
    name: string,
    parts: (suffix: string) => TensorPart[],
    { columns, rowGroup = 1 }: { columns: number; rowGroup?: number },
  ): MatrixPlan => ({
    kind: "matrix",
    label: label(name),
    rows: total(parts("weight")),
    columns,
    rowGroup,
    parts: parts("weight"),
  });

  const qkv = (suffix: string): TensorPart[] =>
    stack([
      [`${attention}.q_proj.${suffix}`, heads * headDim],
      [`${attention}.k_proj.${suffix}`, kvHeads * headDim],
      [`${attention}.v_proj.${suffix}`, kvHeads * headDim],
    ]);
  const output = (suffix: string): TensorPart[] =>
    stack([[`${attention}.o_proj.${suffix}`, hidden]]);
  const gateUp = (suffix: string): TensorPart[] => [
    { name: `${path}.mlp.gate_proj.${suffix}`, rows: ffn, first: 0, step: 2 },
    { name: `${path}.mlp.up_proj.${suffix}`, rows: ffn, first: 1, step: 2 },
  ];
  const down = (suffix: string): TensorPart[] =>
    stack([[`${path}.mlp.down_proj.${suffix}`, hidden]]);
  const norm = (name: string, tensor: string, length: number): VectorPlan =>
    vector(label(name), "norm", stack([[`${tensor}.weight`, length]]));
  const bias = (
    name: string,
    parts: (suffix: string) => TensorPart[],
  ): VectorPlan => vector(label(name), "bias", parts("bias"));

  return {
    attentionNorm: norm("attention norm", `${path}.input_layernorm`, hidden),
    qkv: projection("qkv", qkv, { columns: hidden, rowGroup: headDim }),
    ...(config.attentionBias !== "none" && {
      qkvBias: bias("qkv bias", qkv),
    }),
    ...(config.qkNorm && {
      queryNorm: norm("query norm", `${attention}.q_norm`, headDim),
      keyNorm: norm("key norm", `${attention}.k_norm`, headDim),
    }),
    output: projection("output", output, { columns: heads * headDim }),
    ...(config.attentionBias === "qkvo" && {
      outputBias: bias("output bias", output),
    }),
    ffnNorm: norm("ffn norm", `${path}.post_attention_layernorm`, hidden),
    gateUp: projection("gate and up", gateUp, { columns: hidden, rowGroup: 2 }),
    down: projection("down", down, { columns: ffn }),
    ...(config.mlpBias && {
      gateUpBias: bias("gate and up bias", gateUp),
      downBias: bias("down bias", down),
    }),
  };
}

/** Parts one below the other. */
function stack(tensors: readonly (readonly [string, number])[]): TensorPart[] {
  let first = 0;
  return tensors.map(([name, rows]) => {
    const part = { name, rows, first, step: 1 };
    first += rows;
    return part;
  });
}

/** A vector made of the parts. */
function vector(
  label: string,
  role: VectorPlan["role"],
  parts: TensorPart[],
): VectorPlan {
  return { kind: "vector", label, role, length: total(parts), parts };
}

/** Rows of all parts. */
function total(parts: readonly TensorPart[]): number {
  return parts.reduce((sum, { rows }) => sum + rows, 0);
}
