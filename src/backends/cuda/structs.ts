/**
 * The structs of `cuda/steadykv.h`, field by field in the order they have there,
 * and how values become their bytes. Fields called `reserved` there are padding
 * and have no place here.
 *
 * @module
 */

/** What a field is: a number, an address on the device, or a struct. */
export type FieldType = "address" | "u64" | "u32" | "f32" | StructLayout;

/** Fields of a struct, in order. */
export interface StructLayout {
  readonly [field: string]: FieldType;
}

/** Values of the fields of a struct; a null address is 0. */
export type StructValues<L extends StructLayout> = {
  readonly [F in keyof L]: L[F] extends StructLayout ? StructValues<L[F]>
    : number;
};

const matrix = {
  data: "address",
  rows: "u32",
  columns: "u32",
  pitch: "u32",
} as const satisfies StructLayout;

const sizes = {
  hidden: "u32",
  heads: "u32",
  kvHeads: "u32",
  headDim: "u32",
  ffn: "u32",
  vocabulary: "u32",
  normEpsilon: "f32",
} as const satisfies StructLayout;

const step = {
  tokens: "address",
  chunk: "address",
  state: "address",
  kind: "u32",
  rows: "u32",
} as const satisfies StructLayout;

const slots = {
  keys: "address",
  values: "address",
  side: "address",
  total: "u32",
} as const satisfies StructLayout;

const cache = {
  slots,
  stage: slots,
  table: "address",
  statistics: "address",
  layer: "u32",
  sequences: "u32",
  lanes: "u32",
  maxCapacity: "u32",
  stageRows: "u32",
} as const satisfies StructLayout;

const policy = {
  probe: "u32",
  probeRows: "u32",
  score: "u32",
  logAlpha: "f32",
  logRest: "f32",
  rawScale: "u32",
  countVotes: "u32",
  sinks: "u32",
  merge: "u32",
  key: "u32",
  threshold: "f32",
  mergeFirst: "u32",
  guardLow: "f32",
  guardHigh: "f32",
  observe: "u32",
  countValues: "u32",
  valuePower: "u32",
  valueEpsilon: "f32",
  logValueEpsilon: "f32",
  firstStage: "f32",
  pool: "u32",
  poolReach: "u32",
  layerScope: "u32",
  exactValues: "u32",
  ratioCap: "f32",
  adaptive: "u32",
  floorParts: "u32",
  searchEvery: "u32",
  searchSlots: "u32",
  rounds: "u32",
  productDistance: "u32",
  keyWeight: "f32",
  valueWeight: "f32",
  thresholdKeep: "f32",
  nextCount: "u32",
  expectedValues: "u32",
  drawSeed: "u32",
  heavy: "f32",
} as const satisfies StructLayout;

const mergeAttendArgs = {
  output: "address",
  queries: "address",
  sinkQueries: "address",
  cache,
  step,
  sizes,
  policy,
} as const satisfies StructLayout;

const chunkArgs = {
  output: "address",
  logSums: "address",
  queries: "address",
  sinkQueries: "address",
  cache,
  step,
  sizes,
  policy,
} as const satisfies StructLayout;

/** The structs by their names in C, without `skv_`. */
export const layouts = {
  matrix,
  sizes,
  step,
  slots,
  cache,
  policy,
  embed_args: {
    hidden: "address",
    seen: "address",
    embedding: matrix,
    step,
    sizes,
  },
  qkv_rope_append_args: {
    queries: "address",
    sinkQueries: "address",
    hidden: "address",
    norm: "address",
    bias: "address",
    queryNorm: "address",
    keyNorm: "address",
    rope: "address",
    weight: matrix,
    cache,
    step,
    sizes,
  },
  value_norms_args: { weight: matrix, cache, step, sizes },
  query_statistics_args: {
    queries: "address",
    rope: "address",
    ahead: "address",
    cache,
    step,
    sizes,
    sinks: "u32",
  },
  merge_attend_args: mergeAttendArgs,
  chunk_args: chunkArgs,
  project_add_args: {
    hidden: "address",
    input: "address",
    bias: "address",
    weight: matrix,
    step,
  },
  gate_up_args: {
    output: "address",
    hidden: "address",
    norm: "address",
    bias: "address",
    weight: matrix,
    step,
    sizes,
  },
  lm_head_args: {
    logits: "address",
    hidden: "address",
    norm: "address",
    weight: matrix,
    step,
    sizes,
    lastRow: "u32",
  },
  sample_args: {
    nextTokens: "address",
    output: "address",
    forced: "address",
    logits: "address",
    sampling: "address",
    seen: "address",
    step,
    sizes,
    ring: "u32",
  },
  rows: { offset: "u64", rows: "u32", columns: "u32", pitch: "u64" },
} as const satisfies Readonly<Record<string, StructLayout>>;

/** The structs. */
export type Layouts = typeof layouts;

/** One field of a struct, structs in it taken apart. */
export interface Field {
  /** Names from the outermost struct inwards. */
  readonly path: readonly string[];
  /** Type of the number. */
  readonly type: Exclude<FieldType, StructLayout>;
  /** Byte where it starts. */
  readonly offset: number;
}

/** Fields of a struct and its size, by the rules of C. */
export function placeFields(
  layout: StructLayout,
): { readonly fields: readonly Field[]; readonly size: number } {
  const fields: Field[] = [];
  const place = (inner: StructLayout, path: string[], start: number) => {
    let offset = start;
    for (const [name, type] of Object.entries(inner)) {
      if (typeof type === "object") {
        // All structs inside others begin and end at multiples of 8 bytes.
        offset = place(type, [...path, name], align(offset));
        continue;
      }
      const bytes = type === "u32" || type === "f32" ? 4 : 8;
      offset = Math.ceil(offset / bytes) * bytes;
      fields.push({ path: [...path, name], type, offset });
      offset += bytes;
    }
    return align(offset);
  };
  const size = place(layout, [], 0);
  return { fields, size };
}

function align(offset: number): number {
  return Math.ceil(offset / 8) * 8;
}

/** The bytes of a struct. */
export function packStruct<L extends StructLayout>(
  layout: L,
  values: StructValues<L>,
): Uint8Array<ArrayBuffer> {
  const { fields, size } = placeFields(layout);
  const view = new DataView(new ArrayBuffer(size));
  for (const { path, type, offset } of fields) {
    let value: unknown = values;
    for (const name of path) value = (value as Record<string, unknown>)[name];
    const number = value as number;
    if (type === "u32") view.setUint32(offset, number, true);
    else if (type === "f32") view.setFloat32(offset, number, true);
    else view.setBigUint64(offset, BigInt(number), true);
  }
  return new Uint8Array(view.buffer);
}
