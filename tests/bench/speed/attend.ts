/** `merge_attend` alone, over the caches of all layers of a model. */
import { StateWord } from "../../../src/backends/backend.ts";
import type { DeviceBuffer, Kernels } from "../../../src/backends/backend.ts";
import { SlotCache } from "../../../src/cache/slot_cache.ts";
import { WorkingBuffers } from "../../../src/generate/working_buffers.ts";
import { inverseFrequencies, ropeTable } from "../../../src/model/rope.ts";
import { stageRows } from "../../../src/policies/schedule.ts";
import { fillCache } from "../fill_cache.ts";
import { cacheBytes, type Ceilings } from "./bounds.ts";
import { type Timed, timeInTurn } from "./clock.ts";
import { RandomBlock } from "./random_block.ts";
import { type Result, resultOf } from "./results.ts";
import {
  cacheName,
  type CacheSpec,
  keepsAll,
  policyOf,
  type Repeats,
  type Setup,
} from "./setup.ts";

/** Options of {@link measureAttend}. */
export interface AttendOptions extends Repeats {
  readonly cache: CacheSpec;
  readonly batch: number;
  readonly ceilings: Ceilings;
}

/**
 * Times `merge_attend` per layer. A head merges only what was appended to it,
 * so two programs are timed in turn: one that appends a token to every layer
 * and attends, and one that only appends, which ends in the same slot each
 * time. The difference is attention, scores and merging.
 */
export async function measureAttend(
  setup: Setup,
  { cache: spec, batch, ceilings, steps, rounds }: AttendOptions,
): Promise<Result> {
  const { backend, config, shape } = setup;
  using memory = new DisposableStack();
  const grown = keepsAll(spec) ? steps * (rounds + 1) : 0;
  const below = Math.min(Math.floor(grown / 2), spec.slots - 1);
  const policy = policyOf(spec, { room: grown - below, chunk: 1 });
  const cache = memory.use(
    new SlotCache(backend, policy, {
      ...config,
      sequences: batch,
      stageRows: stageRows(policy),
    }),
  );
  const buffers = memory.use(
    new WorkingBuffers(backend, { config, policy, sequences: batch }),
  );
  using block = new RandomBlock(backend, 3);
  const { headDim } = config.sizes;
  fillCache(backend, cache, {
    sequences: batch,
    live: spec.slots - below,
    fill: (halves) =>
      block.fillHalves(halves, { columns: headDim, deviation: 1 }),
    scores: (length) => block.piece(length, 1),
  });
  begin(setup, buffers, { block, batch, position: spec.slots });

  const run = (attends: boolean): Timed => {
    const program = memory.use(
      backend.record(attends ? "append and attend" : "append", (kernels) => {
        recordLayers(setup, kernels, { cache, buffers, policy, attends });
      }),
    );
    return {
      enqueue: () => program.run(steps),
      done: async () => void await backend.read(buffers.chunk),
    };
  };
  const [both, append] = await timeInTurn([run(true), run(false)], rounds);
  const total = both!.total.map((ms, i) => ms - append!.total[i]!);
  const { layers } = config;
  const { bytes, liveSlots, merges, drops } = await cache.stats();
  const { heads } = config.sizes;
  return resultOf(
    {
      ...{ section: "attend", shape, cache: cacheName(spec), batch },
      slots: spec.slots,
    },
    { total, host: both!.host },
    {
      ...{ units: steps * layers, ceilings },
      work: {
        bytes: batch * cacheBytes(setup, spec.slots) / layers,
        operations: 4 * batch * heads * headDim * spec.slots,
      },
      more: {
        withAppend: both!.total.map((ms) => ms / steps / layers),
        ...{ cacheBytes: bytes, liveSlots, merges, drops },
      },
    },
  );
}

/** Makes every sequence live, and gives it a state that is not zero. */
function begin(
  { backend, config }: Setup,
  { state, rope, activations }: WorkingBuffers,
  { block, batch, position }: {
    block: RandomBlock;
    batch: number;
    position: number;
  },
): void {
  const { hidden, headDim } = config.sizes;
  const words = new Uint32Array(state.length);
  for (let sequence = 0; sequence < batch; sequence++) {
    words[sequence * StateWord.count + StateWord.position] = position;
  }
  backend.write(state, words);
  const { inverse, scale } = inverseFrequencies(config.rope, headDim, position);
  backend.write(rope, ropeTable(inverse, scale));
  backend.write(activations.hidden, block.piece(batch * hidden, 1));
}

function recordLayers(
  { weights, config: { sizes } }: Setup,
  kernels: Kernels,
  { cache, buffers, policy, attends }: {
    cache: SlotCache;
    buffers: WorkingBuffers;
    policy: ReturnType<typeof policyOf>;
    attends: boolean;
  },
): void {
  const step = buffers.step("decode");
  const { hidden, queries, attention } = buffers.activations;
  cache.layers.forEach((layer, i) => {
    const { attentionNorm: norm, qkv: weight, qkvBias: bias } = weights
      .layers[i]!;
    const common = { queries, cache: layer, step, sizes };
    const optional: { bias?: DeviceBuffer } = bias ? { bias } : {};
    const { rope } = buffers;
    kernels.qkvRopeAppend({
      ...{ hidden, norm, weight, rope },
      ...optional,
      ...common,
    });
    if (attends) kernels.mergeAttend({ output: attention, policy, ...common });
  });
}
