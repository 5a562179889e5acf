import { assertEquals } from "@std/assert";
import { listFiles, readText } from "./files.ts";

/** What no file may hold; written in parts, so that this file does not. */
const FORBIDDEN = [
  ...["/work" + "/", "/root" + "/", "/home" + "/", "/tmp" + "/"],
  ...["registry." + "npmjs", "npm.jsr" + ".io"],
  ...["TO" + "DO", "FIX" + "ME"],
];

/** Text that was written here; the files of a model were not. */
function isOurs(path: string): boolean {
  return /(\.(ts|wgsl|cu|cuh|h|md|json|html|sh)|(^|\/)\.?[^.]+)$/.test(path) &&
    !/^examples\/models\/.*\.json$/.test(path);
}

Deno.test("no file names a machine, a registry or something left to do", async () => {
  const found: string[] = [];
  for (const path of (await listFiles()).filter(isOurs)) {
    const lines = (await readText(path)).split("\n");
    for (const [index, line] of lines.entries()) {
      for (const text of FORBIDDEN.filter((text) => line.includes(text))) {
        found.push(`${path}:${index + 1}: ${text}`);
      }
    }
  }
  assertEquals(found, []);
});

Deno.test("file names are in snake case", async () => {
  const wrong = (await listFiles())
    .filter((path) => /\.(ts|wgsl|cu|cuh)$/.test(path))
    .filter((path) => !/^[a-z0-9_./]+$/.test(path));
  assertEquals(wrong, []);
});
