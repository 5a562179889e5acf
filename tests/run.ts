/**
 * Runs the tests: all `*_test.ts` under `tests`, or the files and folders
 * given. Other arguments are options of `deno test`, such as `--filter=merge`;
 * `--jobs=1` runs one file at a time instead of two.
 *
 * Each file has its own process. A driver that crashes takes one file with it,
 * memory is measured without the neighbours, and what a test prints stays
 * together. The last line is `N passed, N failed` and, where some were ignored,
 * `, N skipped`; the numbers are the sums of Deno's own summaries. A file that
 * crashes, does not compile, runs too long or holds no test counts as a failure.
 *
 * @module
 */
import { FLAGS_VARIABLE, stdFlags } from "./offline_std/std_flags.ts";

/** Milliseconds that one file may take. */
const TIME_LIMIT = 10 * 60_000;

/** All that tests may do: everything but the network beyond this machine. */
const PERMISSIONS = [
  "--no-prompt",
  "--allow-read",
  "--allow-write",
  "--allow-env",
  "--allow-run",
  "--allow-sys",
  "--allow-ffi",
  "--allow-net=127.0.0.1,localhost",
];

/**
 * What WebGPU runs on: anything but OpenGL. Its library frees what belongs to a
 * thread when the process ends, and writes to it when the thread ends after
 * that, as those of tests may do.
 */
const WEBGPU = { DENO_WEBGPU_BACKEND: "vulkan,metal,dx12" };

interface Result {
  readonly file: string;
  readonly passed: number;
  readonly failed: number;
  /** Names of the ignored tests. */
  readonly ignored: readonly string[];
  /** Whether `--filter` left nothing of the file. */
  readonly filteredOut: boolean;
  readonly output: string;
}

async function findTests(path: string): Promise<string[]> {
  if (!(await Deno.stat(path)).isDirectory) return [path];
  const files: string[] = [];
  for await (const entry of Deno.readDir(path)) {
    const inner = `${path}/${entry.name}`;
    if (entry.isDirectory) files.push(...await findTests(inner));
    else if (entry.name.endsWith("_test.ts")) files.push(inner);
  }
  return files.sort();
}

function deno(
  args: readonly string[],
  flags: readonly string[],
): Promise<Deno.CommandOutput> {
  return new Deno.Command(Deno.execPath(), {
    args: [...args],
    env: { NO_COLOR: "1", ...WEBGPU, [FLAGS_VARIABLE]: flags.join(" ") },
    stdin: "null",
    signal: AbortSignal.timeout(TIME_LIMIT),
  }).output();
}

async function runFile(
  file: string,
  { flags, options }: { flags: string[]; options: string[] },
): Promise<Result> {
  const { code, signal, stdout, stderr } = await deno(
    ["test", "--no-check", ...PERMISSIONS, ...flags, ...options, file],
    flags,
  );
  const output = new TextDecoder().decode(stdout);
  const errors = new TextDecoder().decode(stderr);
  const end = signal === null ? "" : `${file} was ended by ${signal}\n`;
  return {
    file,
    ...readSummary(output, { code, signal }),
    output: output + errors + end,
  };
}

/** Reads what `deno test` printed at the end. */
export function readSummary(
  output: string,
  { code, signal }: { code: number; signal: string | null },
): Pick<Result, "passed" | "failed" | "ignored" | "filteredOut"> {
  const summaries = output.matchAll(
    /^(?:ok|FAILED) \| (\d+) passed.*? \| (\d+) failed(.*)$/gm,
  );
  const [, passed = 0, failed = 0, rest = ""] = [...summaries].at(-1) ?? [];
  const ignored = output.matchAll(/^ *(.+) \.\.\. ignored \(/gm);
  const filteredOut = /\d+ filtered out/.test(rest) &&
    Number(passed) + Number(failed) === 0;
  const ran = Number(passed) + Number(failed) > 0 || rest.includes("ignored");
  const wrong = code !== 0 || signal !== null || !ran && !filteredOut;
  return {
    passed: Number(passed),
    failed: Math.max(Number(failed), wrong ? 1 : 0),
    ignored: [...ignored].map(([, name]) => name!),
    filteredOut,
  };
}

/** Runs `work` on every item, `jobs` at a time. */
async function inParallel<T>(
  items: readonly T[],
  { jobs, work }: { jobs: number; work: (item: T) => Promise<void> },
): Promise<void> {
  const queue = items.values();
  const worker = async () => {
    for (const item of queue) await work(item);
  };
  await Promise.all(Array.from({ length: jobs }, worker));
}

/** What the arguments ask for. */
interface Plan {
  readonly jobs: number;
  /** Options of `deno test`. */
  readonly options: string[];
  readonly files: string[];
}

async function parse(args: readonly string[]): Promise<Plan> {
  const isJobs = (arg: string) => arg.startsWith("--jobs=");
  const jobs = Number(args.find(isJobs)?.slice(7) ?? 2);
  if (!(jobs >= 1)) {
    throw new RangeError(
      `Cannot run ${jobs} files at a time: expected 1 or more`,
    );
  }
  const options = args.filter((arg) => arg.startsWith("-") && !isJobs(arg));
  const paths = args.filter((arg) => !arg.startsWith("-"));
  const files: string[] = [];
  for (const path of paths.length > 0 ? paths : ["tests"]) {
    const found = await findTests(path).catch((cause) => {
      throw new TypeError(
        `Cannot run tests in ${path}: expected a file or folder (options are written as --name=value)`,
        { cause },
      );
    });
    files.push(...found);
  }
  return { jobs, options, files };
}

async function main(args: readonly string[]): Promise<number> {
  const { jobs, options, files } = await parse(args);
  if (files.length === 0) return report([]);
  const flags = await stdFlags();
  const check = await deno(["check", "--quiet", ...flags, ...files], flags);
  if (!check.success) {
    console.error(new TextDecoder().decode(check.stderr));
    console.log(`${files.length} files not run: they do not compile`);
    console.log(`0 passed, ${files.length} failed`);
    return 1;
  }

  const results: Result[] = [];
  await inParallel(files, {
    jobs,
    async work(file) {
      const result = await runFile(file, { flags, options });
      results.push(result);
      if (result.failed > 0 || !result.filteredOut) console.log(result.output);
    },
  });
  return report(results);
}

function report(results: readonly Result[]): number {
  const sum = (count: (result: Result) => number) =>
    results.reduce((total, result) => total + count(result), 0);
  const passed = sum((result) => result.passed);
  const failed = sum((result) => result.failed);
  const skipped = sum((result) => result.ignored.length);
  for (const { file, ignored } of results) {
    for (const name of ignored) console.log(`IGNORED ${file}: ${name}`);
  }
  for (const { file, failed } of results) {
    if (failed > 0) console.log(`FAILED ${file}`);
  }
  if (passed + failed === 0) console.log("FAILED: no test ran");
  const counts = `${passed} passed, ${failed} failed`;
  console.log(skipped > 0 ? `${counts}, ${skipped} skipped` : counts);
  return failed > 0 || passed === 0 ? 1 : 0;
}

if (import.meta.main) Deno.exit(await main(Deno.args));
