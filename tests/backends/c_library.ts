/**
 * Shared libraries that stand in for others.
 *
 * @module
 */

/**
 * Compiles C to the shared library `path`, with the compiler that the emulation
 * is built with.
 */
export async function compileLibrary(
  path: string,
  source: string,
): Promise<void> {
  const child = new Deno.Command("g++", {
    args: ["-shared", "-fPIC", "-x", "c", "-o", path, "-"],
    stdin: "piped",
    stderr: "inherit",
  }).spawn();
  const writer = child.stdin.getWriter();
  await writer.write(new TextEncoder().encode(source));
  await writer.close();
  const { success } = await child.status;
  if (!success) throw new Error(`Cannot compile ${path}: g++ failed`);
}
