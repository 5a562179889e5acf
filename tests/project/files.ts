import { fromFileUrl } from "@std/path";

/** Root of the repository. */
export const root: URL = new URL("../../", import.meta.url);

/** Whether a folder holds what is written here, and not what tools keep. */
function isOurs(name: string): boolean {
  if (name.startsWith(".")) return name === ".ci";
  return name !== "coverage" && name !== "node_modules";
}

/** Paths of all files of the repository, seen from its root. */
export async function listFiles(folder = ""): Promise<string[]> {
  const paths: string[] = [];
  for await (const entry of Deno.readDir(new URL(folder, root))) {
    const path = folder + entry.name;
    if (!entry.isDirectory) paths.push(path);
    else if (isOurs(entry.name)) {
      paths.push(...await listFiles(`${path}/`));
    }
  }
  return paths.sort();
}

/** Text of a file of the repository. */
export function readText(path: string): Promise<string> {
  return Deno.readTextFile(fromFileUrl(new URL(path, root)));
}
