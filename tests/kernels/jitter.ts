/**
 * Shows that the choices of a scene are not left to rounding: inputs that
 * differ by more than rounding does lead to the same choices.
 *
 * @module
 */
import { assertEquals } from "@std/assert";
import {
  type Backend,
  PartnerField,
  SlotField,
} from "../../src/backends/backend.ts";
import { Random } from "./random.ts";
import { type Outcome, play, type Scene } from "./scene.ts";

/** Standard deviations of the changes that must not matter. */
export interface Jitter {
  /** Of elements of keys and values, relative. */
  readonly keys: number;
  /** Of elements of queries, relative. */
  readonly queries: number;
  /** Of scores. */
  readonly scores: number;
}

/** Other inputs that are tried. */
const TRIES = 3;

/**
 * Asserts that `scene` chooses the same slots when its keys, values and scores
 * are a little different.
 */
export async function assertStable(
  scene: Scene,
  { expected, jitter, reference }: {
    expected: Outcome;
    jitter: Jitter;
    reference: Backend;
  },
): Promise<void> {
  for (let seed = 1; seed <= TRIES; seed++) {
    const other = change(scene, jitter, new Random(seed));
    const outcome = await play(reference, other);
    assertEquals(choices(scene, outcome), choices(scene, expected));
  }
}

/** Positions, tokens and partners: who was kept, and who took whom. */
function choices(scene: Scene, { side }: Outcome): number[] {
  const total = scene.slots!;
  const { partners } = scene;
  const fields: number[] = [SlotField.position, SlotField.tokens];
  if (partners !== undefined) fields.push(partners + PartnerField.slot);
  return fields.flatMap((field) =>
    Array.from(side!.u32.subarray(field * total, (field + 1) * total))
  );
}

function change(scene: Scene, jitter: Jitter, random: Random): Scene {
  const tensors = { ...scene.tensors };
  const changeAll = (names: string[], deviation: number) => {
    if (deviation === 0) return;
    for (const name of names) {
      const { type, data } = tensors[name]!;
      const floats = data as Float32Array;
      tensors[name] = {
        type,
        data: floats.map((x) => x * (1 + deviation * random.normal())),
      };
    }
  };
  changeAll(["keys", "stageKeys", "values", "stageValues"], jitter.keys);
  changeAll(["queries", "sinkQueries"], jitter.queries);
  for (const name of ["side", "stageSide"]) {
    const { type, data } = tensors[name]!;
    const floats = (data as Float32Array).slice();
    const total = name === "side" ? scene.slots! : scene.stageSlots!;
    for (const field of [SlotField.ema, SlotField.accumulated]) {
      for (let i = field * total; i < (field + 1) * total; i++) {
        // What was never observed has no rounding error either.
        if (Math.abs(floats[i]!) > 1e20 || floats[i] === 0) continue;
        floats[i]! += jitter.scores * random.normal();
      }
    }
    tensors[name] = { type, data: floats };
  }
  return { ...scene, tensors };
}
