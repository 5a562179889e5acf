/**
 * Lets something go wrong on a CUDA device, prints what is said about it, and
 * ends as any program does:
 *
 *     cuda_fault_probe.ts FAULT [--emulated] [--check] [--device=N]
 */
import { parseArgs } from "@std/cli/parse-args";
import type { Backend, DeviceBuffer } from "../../src/backends/backend.ts";
import { openCuda } from "../../src/backends/cuda/open_cuda.ts";
import { Generator } from "../../src/generate/generator.ts";
import { keepKV } from "../../src/policies/keep_kv.ts";
import { openEmulation } from "../cuda_emulation/build_emulation.ts";

const MODEL = new URL("../../examples/models/docs-7m/", import.meta.url);

/** Where no memory of any device is. */
const NOWHERE = 4096;

/** Runs `action` and prints what it throws. */
async function tell(action: () => unknown): Promise<void> {
  try {
    await action();
    console.log("nothing went wrong");
  } catch (error) {
    console.log(`${error}`);
  }
}

/** Makes kernels look for a buffer where nothing is. */
function lose<T extends DeviceBuffer>(buffer: T): T {
  return Object.defineProperty(buffer, "address", { value: NOWHERE });
}

/** Runs a program that reads from where nothing is. */
async function readAstray(backend: Backend): Promise<void> {
  const other = backend.allocate("other", "f32", 4);
  const step = {
    kind: "decode",
    rows: 1,
    tokens: other,
    chunk: other,
    state: backend.allocate("state", "u32", 8),
  } as const;
  const weight = backend.allocateMatrix("weight", { rows: 4, columns: 4 });
  const input = lose(backend.allocate("input", "f32", 4));
  using program = backend.record("faulty", (kernels) => {
    kernels.projectAdd({ hidden: other, input, weight, step });
  });
  await tell(async () => {
    program.run();
    await backend.read(other);
  });
  await tell(() => backend.allocate("more", "f32", 4));
}

/** Loads the example model; the emulation wants a short chunk. */
function load(backend: Backend, budget: number): Promise<Generator> {
  const schedule = { kind: "streaming", chunk: 8 } as const;
  const cache = keepKV({ budget, window: 4, schedule });
  return Generator.load(MODEL, { backend, cache, verify: false });
}

/** Generates twice with a buffer that is not there. */
async function generateAstray(backend: Backend): Promise<void> {
  const allocate = backend.allocate.bind(backend);
  backend.allocate = (label, type, length) => {
    const buffer = allocate(label, type, length);
    return label === "queries" ? lose(buffer) : buffer;
  };
  await using generator = await load(backend, 32);
  for (let i = 0; i < 2; i++) {
    await tell(() => generator.generateText("The", { maxTokens: 40 }));
  }
}

/** Loads a model with a cache that is too large, and then with a small one. */
async function exhaust(backend: Backend): Promise<void> {
  const before = backend.bytesAllocated;
  await tell(() => load(backend, 1e10));
  console.log(`${backend.bytesAllocated - before} bytes left behind`);
  await using generator = await load(backend, 32);
  const tokens = await Array.fromAsync(
    generator.generate("The", { maxTokens: 2 }),
  );
  console.log(`${tokens.length} tokens`);
}

const faults: Record<string, (backend: Backend) => Promise<void>> = {
  "read": readAstray,
  "generate": generateAstray,
  "memory": exhaust,
};

if (import.meta.main) {
  const { _: [name], check, emulated, device } = parseArgs(Deno.args, {
    boolean: ["check", "emulated"],
    string: ["device"],
  });
  if (name === "open") {
    await tell(() => openCuda({ device: Number(device ?? 0) }));
  } else {
    const open = emulated ? openEmulation : openCuda;
    await using backend = await open({ checkEveryKernel: check });
    await faults[`${name}`]!(backend);
  }
  console.log("still here");
}
