/**
 * Embeds sources that are not TypeScript into modules, because a package
 * registry hands its users modules only.
 *
 * ```sh
 * deno task embed-sources          # writes the modules
 * deno task embed-sources --check  # fails where one is not up to date
 * ```
 *
 * @module
 */

/** A folder of sources and the module that holds them. */
export interface Embedding {
  /** Folder of the sources, seen from the root of the repository. */
  readonly folder: string;
  /** Endings of the files to take. */
  readonly extensions: readonly string[];
  /** The module to write, seen from the root of the repository. */
  readonly module: string;
  /** Name of the constant that the module exports. */
  readonly constant: string;
}

/** The modules that this repository generates. */
export const embeddings: readonly Embedding[] = [
  {
    folder: "shaders",
    extensions: [".wgsl"],
    module: "src/backends/webgpu/shaders.generated.ts",
    constant: "shaders",
  },
  {
    folder: "cuda",
    extensions: [".cu", ".cuh", ".h"],
    module: "cuda/sources.generated.ts",
    constant: "cudaSources",
  },
];

/** Root of the repository. */
const root = new URL("../../", import.meta.url);

/**
 * Text of the module for an embedding. The same sources give the same text,
 * whatever order the file system lists them in and however lines end.
 */
export async function generate(
  embedding: Embedding,
  base: URL = root,
): Promise<string> {
  const { folder, extensions, constant } = embedding;
  const paths = (await listFiles(new URL(`${folder}/`, base)))
    .filter((path) => extensions.some((ending) => path.endsWith(ending)))
    .sort();
  const entries = await Promise.all(paths.map(async (path) => {
    const text = await Deno.readTextFile(new URL(`${folder}/${path}`, base));
    return `  ${JSON.stringify(path)}: ${quote(text)},\n`;
  }));
  return `// Generated from ${folder} by \`deno task embed-sources\`: edit there

/** Files of \`${folder}\` by their path below it. */
export const ${constant}: Readonly<Record<string, string>> = {
${entries.join("")}};
`;
}

/** A template literal, so that a change is seen line by line. */
function quote(text: string): string {
  const escaped = text
    .replaceAll("\r\n", "\n")
    .replaceAll("\\", "\\\\")
    .replaceAll("`", "\\`")
    .replaceAll("${", "\\${");
  return "`" + escaped + "`";
}

async function listFiles(folder: URL, prefix = ""): Promise<string[]> {
  const paths: string[] = [];
  for await (const { name, isDirectory } of Deno.readDir(folder)) {
    if (isDirectory) {
      const inner = new URL(`${name}/`, folder);
      paths.push(...await listFiles(inner, `${prefix}${name}/`));
    } else paths.push(prefix + name);
  }
  return paths;
}

/** Embeddings whose module is not what {@linkcode generate} returns. */
export async function findStale(): Promise<Embedding[]> {
  const stale: Embedding[] = [];
  for (const embedding of embeddings) {
    const path = new URL(embedding.module, root);
    const text = await Deno.readTextFile(path).catch((error) => {
      if (error instanceof Deno.errors.NotFound) return undefined;
      throw error;
    });
    if (text !== await generate(embedding)) stale.push(embedding);
  }
  return stale;
}

async function main(args: readonly string[]): Promise<number> {
  const check = args.includes("--check");
  const stale = await findStale();
  for (const embedding of stale) {
    if (check) {
      console.error(
        `${embedding.module} is stale: run deno task embed-sources`,
      );
    } else {
      const path = new URL(embedding.module, root);
      await Deno.writeTextFile(path, await generate(embedding));
      console.log(`Wrote ${embedding.module}`);
    }
  }
  return check && stale.length > 0 ? 1 : 0;
}

if (import.meta.main) Deno.exit(await main(Deno.args));
