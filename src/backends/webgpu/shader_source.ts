/**
 * Puts kernels together from their WGSL files and reads from the text what a
 * launcher has to supply, so that names stand in one place only: the shader.
 *
 * @module
 */

/** How a shader uses one of its buffers. */
export type BindingAccess = "read" | "read_write" | "uniform";

/** A buffer that a shader declares in bind group 0. */
export interface Binding {
  /** Name of the variable. */
  readonly name: string;
  /** Number of the binding. */
  readonly index: number;
  /** How it is used. */
  readonly access: BindingAccess;
}

/** One field of a shader's `Params`; each takes four bytes. */
export interface ParamField {
  readonly name: string;
  readonly type: "u32" | "f32";
}

/** A kernel with its libraries, and what it declares. */
export interface ShaderSource {
  /** Name of the kernel. */
  readonly name: string;
  /** WGSL text. */
  readonly code: string;
  readonly bindings: readonly Binding[];
  readonly params: readonly ParamField[];
  /** Names of the `override` constants. */
  readonly overrides: ReadonlySet<string>;
}

/** Libraries of `shaders/lib` that are put in front of each kernel. */
const libraries: Readonly<Record<string, readonly string[]>> = {
  embed: ["half", "step_words", "step"],
  qkv_rope_append: [
    "half",
    "step_words",
    "step",
    "matrix",
    "head_table",
    "appended",
    "rope",
  ],
  value_norms: ["half", "step_words", "step", "head_table", "appended"],
  query_statistics: ["step_words", "step", "rope", "query_statistics"],
  project_add: ["half", "step_words", "step", "matrix"],
  gate_up: ["half", "step_words", "step", "matrix"],
  lm_head: ["half", "step_words", "step", "matrix"],
  merge_attend: [
    "half",
    "step_words",
    "step",
    "head_table",
    "reduce",
    "softmax_state",
    "policy",
    "step_gain",
    "slots",
    "slot_writes",
    "score_tile",
    "scores",
    "ranks",
    "merge_slots",
    "blend_slots",
    "neighbours",
    "segments",
    "next_values",
    "merge_values",
    "ordered_bits",
    "select_rank",
    "key_distance",
    "query_statistics",
    "expected_attention",
    "head_choice",
    "pairs",
    "search",
    "pair_step",
    "segment_step",
    "observe_step",
    "merge_one",
    "evict_one",
  ],
  prefill_attend: [
    "half",
    "step_words",
    "step",
    "head_table",
    "step_gain",
    "staged_slots",
    "score_tile",
  ],
  observe: [
    "half",
    "step_words",
    "step",
    "head_table",
    "policy",
    "step_gain",
    "staged_slots",
    "staged_slot_writes",
    "score_tile",
    "scores",
  ],
  compress: [
    "half",
    "step_words",
    "step",
    "head_table",
    "reduce",
    "policy",
    "staged_slots",
    "staged_slot_writes",
    "scores",
    "ranks",
    "merge_slots",
    "blend_slots",
    "neighbours",
    "segments",
    "next_values",
    "merge_values",
    "pairs",
    "search",
    "ordered_bits",
    "select_rank",
    "candidates",
    "allocate_heads",
    "key_distance",
    "query_statistics",
    "expected_attention",
    "ratings",
    "find_targets",
    "pairing",
    "merge_sets",
    "segment_rounds",
    "choose_victims",
    "merge_victims",
    "pass_values",
    "runs",
    "settle_chunk",
  ],
  sample: ["step_words", "reduce", "ordered_bits", "draw_id"],
};

/**
 * Puts kernel `name` together.
 *
 * @param files WGSL text by path below `shaders`.
 * @throws {TypeError} If one of its files is not there.
 */
export function composeShader(
  name: string,
  files: Readonly<Record<string, string>>,
): ShaderSource {
  const paths = [
    ...(libraries[name] ?? []).map((library) => `lib/${library}.wgsl`),
    `${name}.wgsl`,
  ];
  const code = paths.map((path) => {
    const text = files[path];
    if (text === undefined) {
      throw new TypeError(`Cannot compose kernel ${name}: no file ${path}`);
    }
    return text;
  }).join("\n");
  return {
    name,
    code,
    bindings: readBindings(code),
    params: readParams(code),
    overrides: new Set(
      [...code.matchAll(/^override (\w+):/gm)].map((match) => match[1]!),
    ),
  };
}

function readBindings(code: string): Binding[] {
  const declarations = code.matchAll(
    /^@group\(0\) @binding\((\d+)\)\s+var<(uniform|storage)(?:, (\w+))?> (\w+):/gm,
  );
  return [...declarations].map(([, index, space, access, name]) => ({
    name: name!,
    index: Number(index),
    access: space === "uniform" ? "uniform" : access as "read" | "read_write",
  }));
}

function readParams(code: string): ParamField[] {
  const body = /^struct Params \{([^}]*)\}/m.exec(code)?.[1] ?? "";
  return [...body.matchAll(/^\s*(\w+): (u32|f32),/gm)].map((match) => ({
    name: match[1]!,
    type: match[2] as "u32" | "f32",
  }));
}
