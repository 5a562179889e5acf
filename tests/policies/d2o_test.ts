/**
 * What D2O states, on every backend.
 */
import { assertAlmostEquals, assertEquals } from "@std/assert";
import { d2o } from "../../src/policies/d2o.ts";
import { eachBackend } from "../backends/each_backend.ts";
import {
  freshSlot,
  LayerHarness,
  layerSizes,
  randomNumbers,
  type TestSlot,
} from "./layer_harness.ts";

const sizes = layerSizes({ headDim: 4 });

/** A slot whose key points `degrees` from the first axis. */
function slotAt(position: number, degrees: number, value: number): TestSlot {
  const random = randomNumbers(position);
  const angle = degrees * Math.PI / 180;
  return {
    ...freshSlot(random, { headDim: 4, lanes: 1, position }),
    key: Float32Array.from(
      new Float16Array([2 * Math.cos(angle), 2 * Math.sin(angle), 0, 0]),
    ),
    value: new Float32Array(4).fill(value),
  };
}

eachBackend(
  "D2O weighs by exp(cosine), merges above its threshold and moves it",
  async (backend) => {
    using layer = new LayerHarness(backend, {
      sizes,
      policy: d2o({ budget: 4, sinks: 0 }),
      capacity: 5,
    });
    const slots = [0, 90, 180, 270].map((degrees, position) => ({
      ...slotAt(position, degrees, position),
      accumulated: position,
    }));
    layer.writeSlots([slots], { budget: 4, recent: 2, live: 4 });
    // A query of 0 attends to all slots alike: scores keep their order.
    const query = new Float32Array(4);
    const step = async (position: number, degrees: number, value: number) => {
      await layer.append(slotAt(position, degrees, value));
      await layer.mergeAttend(query, position);
      const [threshold] = await layer.readTable("threshold");
      const [after] = await layer.readSlots();
      return { threshold: threshold!, after: after! };
    };
    // Keys are halves of up to 2; a cosine is the sum of two such products.
    const unit = 4 * 2 ** -11;
    const cos = (degrees: number) => Math.cos(degrees * Math.PI / 180);

    // Slot 0 goes to the newest, 30 degrees away: the first threshold.
    const first = await step(4, 30, 8);
    assertAlmostEquals(first.threshold, cos(30), unit);
    assertEquals(await layer.readTable("merged"), [1]);
    const merged = first.after.find(({ position }) => position === 4)!;
    const share = Math.exp(cos(30)) / (Math.exp(cos(30)) + Math.E);
    assertEquals(merged.tokens, 2);
    assertEquals(merged.bias, [0]);
    merged.value.forEach((x) =>
      assertAlmostEquals(x, share * 0 + (1 - share) * 8, 8 * unit)
    );
    assertAlmostEquals(
      merged.key[1]!,
      (1 - share) * 2 * Math.sin(Math.PI / 6),
      unit,
    );

    // Slot 1 has no such neighbour: it is dropped, and the threshold falls.
    const angle = Math.atan2(merged.key[1]!, merged.key[0]!) * 180 / Math.PI;
    const second = await step(5, 300, 0);
    const mean = (first.threshold + cos(90 - angle)) / 2;
    assertAlmostEquals(second.threshold, mean, unit);
    assertEquals(await layer.readTable("merged"), [1]);
    assertEquals(await layer.readTable("dropped"), [1]);
    assertEquals(
      second.after.map(({ position }) => position).sort(),
      [2, 3, 4, 5],
    );
  },
);
