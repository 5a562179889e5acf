/**
 * `deno task bench:speed`: how fast a backend is at the sizes of real models,
 * beside what the memory and the matrix units of the device allow.
 *
 * Weights and caches are random and full from the start, so nothing is
 * downloaded, and a measurement begins within seconds. See docs/performance.md.
 */
import type { Backend } from "../../src/backends/backend.ts";
import { CudaBackend } from "../../src/backends/cuda/cuda_backend.ts";
import { openBackend } from "../../src/backends/open_backend.ts";
import { parseFlags, type Values, wantsHelp } from "../../src/cli/flags.ts";
import { helpText } from "../../src/cli/help.ts";
import { type Command, runCommand } from "../../src/cli/run_command.ts";
import { print, printError } from "../../src/cli/terminal.ts";
import type { Ceilings } from "./speed/bounds.ts";
import { planCells } from "./speed/plan.ts";
import { Report } from "./speed/report.ts";
import type { Setup } from "./speed/setup.ts";
import { readShape, type ShapeName } from "./speed/shapes.ts";
import {
  deviceFlags,
  flags,
  howFlags,
  outputFlags,
  planOf,
  whatFlags,
} from "./speed/speed_flags.ts";
import { speedWeights } from "./speed/weights.ts";

/** Bytes that a stream is read from where the backend can measure it. */
const STREAM_BYTES = 2 ** 32;

const help = helpText({
  summary: "Measures speed at the sizes of real models with random weights, " +
    "beside what the device allows.",
  usage: "deno task bench:speed [flags]",
  sections: {
    "What": whatFlags,
    "How": howFlags,
    "Device": deviceFlags,
    "Output": outputFlags,
  },
  notes: [
    "A line holds the median milliseconds of a decode step (decode, merging, " +
    "flat, largest), of merge_attend in one layer (attend) or of a prompt " +
    "(prefill), and the bytes and operations that it cannot do without.",
    "What fails is said and does not stop the rest. Exit status: 0 if " +
    "anything was measured, 1 if nothing was, 2 if the command line is wrong.",
    "Examples:\n" +
    "  deno task bench:speed --shapes tiny --caches full:512,keepkv:64\n" +
    "  deno task bench:speed --backend cuda --shapes llama-3.1-8b " +
    "--batches 1,16",
  ],
});

/** The command; see {@linkcode runCommand} for what it returns. */
export const speed: Command = async (args) => {
  if (wantsHelp(args)) {
    await print(`${help}\n`);
    return 0;
  }
  const { values } = parseFlags(args, flags);
  const { backend } = await openBackend(values.backend ?? "auto");
  await using _backend = backend;
  const report = new Report(values.json, {
    backend: backend.name,
    device: backend.description,
    ceilings: ceilingsOf(backend, values),
  });
  await report.begin();
  for (const shape of values.shapes ?? ["qwen2.5-0.5b"]) {
    await measureShape(backend, shape, { values, report });
  }
  await report.end();
  return report.measured ? 0 : 1;
};

/** Makes all measurements of one shape. */
async function measureShape(
  backend: Backend,
  shape: ShapeName,
  { values, report }: { values: Values<typeof flags>; report: Report },
): Promise<void> {
  const cells = planCells(planOf(values, report.about.ceilings));
  const config = await readShape(shape);
  const fail = (section: string, what: string, error: unknown) =>
    report.fail({ section, shape, what, reason: describe(error) });
  let setup: Setup;
  try {
    const begin = performance.now();
    const weights = speedWeights(backend, config);
    setup = { backend, shape, config, weights };
    const seconds = ((performance.now() - begin) / 1000).toFixed(1);
    printError(
      `${shape}: ${weights.byteLength} bytes of weights, ${seconds} s\n`,
    );
  } catch (error) {
    await fail("weights", "random weights", error);
    return;
  }
  using _weights = setup.weights;
  for (const { section, what, run } of cells) {
    if (performance.now() / 1000 > (values.seconds ?? Infinity)) {
      await fail(section, what, "there was no time left");
      continue;
    }
    printError(`${section}: ${what}\n`);
    try {
      await report.add(await run(setup));
    } catch (error) {
      await fail(section, what, error);
    }
  }
}

/** What the flags say of the device, and what the backend can measure. */
function ceilingsOf(
  backend: Backend,
  { stream, matrix }: Values<typeof flags>,
): Ceilings {
  const measured = stream === undefined && backend instanceof CudaBackend
    ? backend.measureRead(STREAM_BYTES, 10)
    : undefined;
  return {
    stream: stream === undefined ? measured : stream * 1e9,
    matrix: matrix === undefined ? undefined : matrix * 1e12,
  };
}

function describe(error: unknown): string {
  return error instanceof Error
    ? `${error.name}: ${error.message}`
    : `${error}`;
}

if (import.meta.main) Deno.exit(await runCommand(speed, Deno.args));
