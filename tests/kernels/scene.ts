/**
 * A scene is one kernel call with its inputs, described on the host, so that
 * any backend can play it.
 *
 * @module
 */
import type {
  Backend,
  DeviceBuffer,
  DeviceMatrix,
  ElementType,
  HostTensor,
  Kernels,
} from "../../src/backends/backend.ts";

/** A tensor of a scene. */
export interface TensorSpec {
  readonly type: ElementType;
  /** Its elements before the call; garbage for what the call must write. */
  readonly data: Float32Array | Uint32Array;
}

/** A weight matrix of a scene. */
export interface MatrixSpec {
  readonly rows: number;
  readonly columns: number;
  readonly rowGroup?: number;
  readonly data: Float32Array;
}

/** Tensors and matrices by name, as a backend has them. */
export interface Stage {
  buffer(name: string): DeviceBuffer;
  matrix(name: string): DeviceMatrix;
}

/** One call of one kernel. */
export interface Scene {
  readonly tensors: Readonly<Record<string, TensorSpec>>;
  readonly matrices?: Readonly<Record<string, MatrixSpec>>;
  /** Slots of the cache and of the stage, where the scene has them. */
  readonly slots?: number;
  readonly stageSlots?: number;
  /** First field of what slots remember of a partner, if they do. */
  readonly partners?: number;
  /** Records the call. */
  record(kernels: Kernels, stage: Stage): void;
}

/** What all tensors hold after the call. */
export type Outcome = Readonly<Record<string, HostTensor>>;

/** Plays `scene` on `backend` and reads every tensor. */
export async function play(backend: Backend, scene: Scene): Promise<Outcome> {
  const [outcome] = await playAll(backend, [scene]);
  return outcome!;
}

/**
 * Plays scenes that differ in their tensors' elements alone, by one program
 * that runs once for each.
 */
export async function playAll(
  backend: Backend,
  scenes: readonly Scene[],
): Promise<Outcome[]> {
  using stack = new DisposableStack();
  const buffers = new Map<string, DeviceBuffer>();
  const matrices = new Map<string, DeviceMatrix>();
  const scene = scenes[0]!;
  for (const [name, { type, data }] of Object.entries(scene.tensors)) {
    buffers.set(name, stack.use(backend.allocate(name, type, data.length)));
  }
  for (const [name, spec] of Object.entries(scene.matrices ?? {})) {
    const matrix = stack.use(backend.allocateMatrix(name, spec));
    backend.writeRows(matrix, spec.data, { firstRow: 0 });
    matrices.set(name, matrix);
  }
  const program = stack.use(backend.record("scene", (kernels) => {
    scene.record(kernels, {
      buffer: (name) => buffers.get(name)!,
      matrix: (name) => matrices.get(name)!,
    });
  }));
  const outcomes: Outcome[] = [];
  for (const { tensors } of scenes) {
    for (const [name, buffer] of buffers) {
      backend.write(buffer, tensors[name]!.data);
    }
    program.run();
    const outcome: Record<string, HostTensor> = {};
    for (const [name, buffer] of buffers) {
      outcome[name] = await backend.read(buffer);
    }
    outcomes.push(outcome);
  }
  return outcomes;
}
