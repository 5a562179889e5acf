/**
 * Scores that are not a slot's own: those of its neighbours (SnapKV) and of the
 * other heads (TOVA), on every backend.
 */
import { assertEquals } from "@std/assert";
import type { Pool } from "../../src/policies/parts.ts";
import { snapKV } from "../../src/policies/snap_kv.ts";
import { tova } from "../../src/policies/tova.ts";
import { eachBackend } from "../backends/each_backend.ts";
import {
  exactAttention,
  freshSlot,
  LayerHarness,
  layerSizes,
  normalVector,
  randomNumbers,
} from "./layer_harness.ts";

eachBackend(
  "SnapKV keeps what surrounds an important token",
  async (backend) => {
    const random = randomNumbers(1);
    const scores = [0.3, 0, 0, 0, 0.9, 0, 0, 0.4, 0.35, 0, 0, 0];
    const kept = async (pool: Pool, budget: number) => {
      const policy = {
        ...snapKV({ budget, window: 2, pool }),
        probe: { kind: "none" },
      } as const;
      using layer = new LayerHarness(backend, {
        sizes: layerSizes({ heads: 1, kvHeads: 1, headDim: 16 }),
        policy,
        capacity: budget + 1,
        stageRows: scores.length,
      });
      layer.writeSlots([[]], { budget, recent: 2, live: 0 });
      layer.writeStage([scores.map((accumulated, position) => ({
        ...freshSlot(random, { headDim: 16, lanes: 1, position }),
        accumulated,
      }))]);
      await layer.readChunk(new Float32Array(scores.length * 16), {
        position: 0,
        rows: scores.length,
      });
      const [slots] = await layer.readSlots();
      return slots!.map(({ position }) => position).sort((a, b) => a - b);
    };
    // The window, tokens 10 and 11, stays whatever its scores.
    assertEquals(await kept({ kind: "none" }, 5), [4, 7, 8, 10, 11]);
    assertEquals(await kept({ kind: "mean", width: 3 }, 5), [3, 4, 5, 10, 11]);
    // Ties stay by position: the newest of equal scores.
    assertEquals(await kept({ kind: "max", width: 3 }, 5), [3, 4, 5, 10, 11]);
    assertEquals(
      await kept({ kind: "max", width: 3 }, 8),
      [3, 4, 5, 6, 7, 8, 10, 11],
    );
    // At its ends the window is cut: 0.3 over two tokens, not three.
    assertEquals(
      await kept({ kind: "mean", width: 3 }, 9),
      [0, 3, 4, 5, 7, 8, 9, 10, 11],
    );
  },
);

eachBackend(
  "TOVA drops in all heads the token that the newest row attends to least",
  async (backend) => {
    for (let seed = 1; seed <= 8; seed++) {
      const random = randomNumbers(seed);
      const sizes = layerSizes({ heads: 4, kvHeads: 2, headDim: 16 });
      using layer = new LayerHarness(backend, {
        sizes,
        policy: tova({ budget: 9 }),
        capacity: 10,
      });
      const slots = [0, 1].map(() =>
        Array.from({ length: 10 }, (_, position) => ({
          ...freshSlot(random, { headDim: 16, lanes: 1, position }),
          // What earlier rows left counts no more.
          accumulated: random() * 5,
          observations: 4,
        }))
      );
      layer.writeSlots(slots, { budget: 9, recent: 0, live: 9 });
      const queries = normalVector(random, 4 * 16, 1.5);
      await layer.mergeAttend(queries, 9);
      const sums = Array.from({ length: 10 }, () => 0);
      for (let head = 0; head < 4; head++) {
        const query = queries.subarray(head * 16, (head + 1) * 16);
        const { weights } = exactAttention(query, slots[head >> 1]!);
        weights.forEach((weight, i) => sums[i]! += weight);
      }
      const victim = sums.indexOf(Math.min(...sums));
      const expected = Array.from({ length: 10 }, (_, i) => i)
        .filter((i) => i !== victim);
      for (const head of await layer.readSlots()) {
        assertEquals(head.map(({ position }) => position), expected);
      }
    }
  },
);
