import { assertEquals } from "@std/assert";
import { toFileUrl } from "@std/path";
import { findStale, generate } from "../../src/cli/embed_sources.ts";

Deno.test("embedded sources are those of the files", async () => {
  const stale = await findStale();
  assertEquals(
    stale.map((embedding) => embedding.module),
    [],
    "run deno task embed-sources",
  );
});

Deno.test("generate() keeps every character and does not depend on the system", async () => {
  const folder = await Deno.makeTempDir();
  try {
    const text = "a `b` ${c} \\d \u00b7\n\n  // ${\n";
    await Deno.mkdir(`${folder}/in/deep`, { recursive: true });
    await Deno.writeTextFile(`${folder}/in/b.txt`, text);
    await Deno.writeTextFile(
      `${folder}/in/a.txt`,
      text.replaceAll("\n", "\r\n"),
    );
    await Deno.writeTextFile(`${folder}/in/deep/c.txt`, "");
    await Deno.writeTextFile(`${folder}/in/other.bin`, "");
    const embedding = {
      folder: "in",
      extensions: [".txt"],
      module: "out.ts",
      constant: "sources",
    };
    const base = toFileUrl(`${folder}/`);
    const module = await generate(embedding, base);
    assertEquals(await generate(embedding, base), module);
    const { sources } = await import(
      `data:text/typescript,${encodeURIComponent(module)}`
    );
    assertEquals(Object.entries(sources), [
      ["a.txt", text],
      ["b.txt", text],
      ["deep/c.txt", ""],
    ]);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});
