import { assertEquals } from "@std/assert";
import { listFiles, readText, root } from "./files.ts";

interface Task {
  readonly description?: string;
  readonly command: string;
}

const { tasks, exports, publish } = JSON.parse(
  await readText("deno.json"),
) as {
  readonly tasks: Record<string, Task>;
  readonly exports: Record<string, string>;
  readonly publish: { readonly include: string[] };
};

async function missing(paths: readonly string[]): Promise<string[]> {
  const exist = await Promise.all(
    paths.map((path) =>
      Deno.stat(new URL(path, root)).then(() => true, () => false)
    ),
  );
  return paths.filter((_, i) => !exist[i]);
}

Deno.test("commands of the documents are tasks", async () => {
  const documents = (await listFiles())
    .filter((path) => path.endsWith(".md") || path.startsWith(".ci/"));
  const unknown: string[] = [];
  for (const path of documents) {
    const text = await readText(path);
    for (const [, name] of text.matchAll(/deno(?:@\S+)? task ([a-z:-]+)/g)) {
      if (!(name! in tasks)) unknown.push(`${path}: ${name}`);
    }
  }
  assertEquals(unknown, []);
});

Deno.test("each task is described, and its programs exist", async () => {
  for (const [name, { description = "", command }] of Object.entries(tasks)) {
    assertEquals(description.length > 10, true, name);
    const paths = command.match(/[\w./]+\.ts\b/g) ?? [];
    assertEquals(await missing(paths), [], name);
  }
});

Deno.test("entry points and published paths exist", async () => {
  assertEquals(await missing(Object.values(exports)), []);
  assertEquals(await missing(publish.include), []);
});
