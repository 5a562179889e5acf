import { assertEquals } from "@std/assert";
import type { Kernels } from "../../src/backends/backend.ts";

// The compiler demands that these are the names of `Kernels`, all of them.
const kernels = Object.keys(
  {
    embed: true,
    qkvRopeAppend: true,
    valueNorms: true,
    queryStatistics: true,
    mergeAttend: true,
    prefillAttend: true,
    observe: true,
    compress: true,
    projectAdd: true,
    gateUp: true,
    lmHead: true,
    sample: true,
  } satisfies Record<keyof Kernels, true>,
);

const root = new URL("../../", import.meta.url);

function snakeCase(name: string): string {
  return name.replaceAll(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
}

for (const kernel of kernels) {
  const name = snakeCase(kernel);

  Deno.test(`${kernel} has a reference of its name`, async () => {
    const path = new URL(`src/reference/${name}.ts`, root).href;
    const module = await import(path);
    assertEquals(typeof module[kernel], "function");
  });

  Deno.test(`${kernel} has a shader of its name`, async () => {
    const { isFile } = await Deno.stat(new URL(`shaders/${name}.wgsl`, root));
    assertEquals(isFile, true);
  });

  Deno.test(`${kernel} has a CUDA kernel of its name`, async () => {
    const { isFile } = await Deno.stat(new URL(`cuda/${name}.cu`, root));
    assertEquals(isFile, true);
  });
}
