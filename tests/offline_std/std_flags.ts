/**
 * Prints the flags with which `deno` resolves `@std/*` on this machine.
 *
 * `deno.json` names the real packages on JSR, and where Deno can have them
 * (from its cache or from the registry) this prints nothing. Where it cannot,
 * it prints one `--import-map` flag that repeats the imports of `deno.json`
 * with the stand-ins of this folder in place of `@std/*`. Tasks use it as
 *
 * ```sh
 * deno run $(deno run -A --no-config tests/offline_std/std_flags.ts) file.ts
 * ```
 *
 * so the program runs as `deno run file.ts` would run it: there is no process
 * in between that could lose arguments, signals or the exit code.
 *
 * The import map is a `data:` URL, so there is no file to clean up or to go
 * stale. For the same reason the answer is not kept on disk: Deno is asked each
 * time, which takes a moment when the packages are in its cache or the registry
 * refuses, and {@link TIME_LIMIT} when the registry does not answer.
 * `STEADYKV_STD_FLAGS` holds a known answer, for the commands of one task.
 *
 * There is no lock file (`"lock": false`): one written here would miss the JSR
 * packages, and one written where JSR can be reached would be rewritten here.
 *
 * @module
 */

/** Environment variable with the flags, for those who know them already. */
export const FLAGS_VARIABLE = "STEADYKV_STD_FLAGS";

/** Milliseconds that Deno has to find the real packages. */
export const TIME_LIMIT = 10_000;

/** Options of {@link stdFlags}. */
export interface StdFlagsOptions {
  /** Milliseconds that Deno has, {@link TIME_LIMIT} unless told otherwise. */
  readonly timeLimit?: number;
  /** Environment variables for the question, beside those of the process. */
  readonly env?: Record<string, string>;
}

interface DenoConfig {
  readonly name: string;
  readonly exports: Record<string, string>;
  readonly imports: Record<string, string>;
}

const folder = new URL("./", import.meta.url);
const root = new URL("../../", folder);

/** Flags for `deno run`, `test`, `bench`, `check` and `doc`: one or none. */
export async function stdFlags(
  options: StdFlagsOptions = {},
): Promise<string[]> {
  const known = Deno.env.get(FLAGS_VARIABLE);
  if (known !== undefined) return known === "" ? [] : [known];

  const config = await readConfig();
  const standIns = await findStandIns();
  if (await hasPackages(config, [...standIns.keys()], options)) return [];
  console.error(
    "JSR cannot be reached: using the stand-ins for @std in tests/offline_std",
  );
  const json = JSON.stringify({ imports: importMap(config, standIns) });
  return [`--import-map=data:application/json,${encodeURIComponent(json)}`];
}

/** The imports of `deno.json` as an import map, with stand-ins for `@std`. */
function importMap(
  config: DenoConfig,
  standIns: ReadonlyMap<string, URL>,
): Record<string, string> {
  const imports: Record<string, string> = {};
  // What Deno adds to the imports of a deno.json by itself: the package's own
  // name, and the modules below each npm package.
  for (const [path, module] of Object.entries(config.exports)) {
    imports[config.name + path.slice(1)] = new URL(module, root).href;
  }
  for (const [name, target] of Object.entries(config.imports)) {
    if (target.startsWith("jsr:@std/")) continue;
    imports[name] = target;
    if (target.startsWith("npm:")) {
      imports[`${name}/`] = `${target.replace("npm:", "npm:/")}/`;
    }
  }
  for (const [name, module] of standIns) imports[name] = module.href;
  return imports;
}

/** Stand-ins by name: `cli/parse_args.ts` is `@std/cli/parse-args`. */
export async function findStandIns(): Promise<Map<string, URL>> {
  const standIns = new Map<string, URL>();
  async function visit(path: string): Promise<void> {
    for await (const entry of Deno.readDir(new URL(path, folder))) {
      if (entry.isDirectory) {
        await visit(`${path}${entry.name}/`);
      } else if (path !== "./" && entry.name.endsWith(".ts")) {
        const module = `${path}${entry.name}`;
        const name = module.slice(2, -3).replace(/\/mod$/, "");
        standIns.set(
          `@std/${name.replaceAll("_", "-")}`,
          new URL(module, folder),
        );
      }
    }
  }
  await visit("./");
  // In one order, so that what Deno caches for an import map is found again.
  return new Map([...standIns].sort(([a], [b]) => a < b ? -1 : 1));
}

/** Whether Deno can resolve the real modules of these names. */
async function hasPackages(
  config: DenoConfig,
  names: readonly string[],
  { timeLimit = TIME_LIMIT, env = {} }: StdFlagsOptions,
): Promise<boolean> {
  const modules = names.map((name) => {
    const [scope, pkg, ...path] = name.split("/");
    return [config.imports[`${scope}/${pkg}`], ...path].join("/");
  });
  const { success } = await new Deno.Command(Deno.execPath(), {
    args: ["cache", "--no-config", ...modules],
    env,
    stdin: "null",
    stdout: "null",
    stderr: "null",
    signal: AbortSignal.timeout(timeLimit),
  }).output();
  return success;
}

async function readConfig(): Promise<DenoConfig> {
  const path = new URL("deno.json", root);
  return JSON.parse(await Deno.readTextFile(path)) as DenoConfig;
}

if (import.meta.main) console.log((await stdFlags()).join(" "));
