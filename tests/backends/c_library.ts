/**
 * Shared libraries that stand in for others.
 *
 * @module
 */

/** Why there are none here; undefined where there are. */
export async function compilerMissing(): Promise<string | undefined> {
  if (Deno.build.os !== "linux") return "libraries are faked on Linux only";
  const output = await new Deno.Command("gcc", {
    args: ["--version"],
    stdout: "null",
    stderr: "null",
  }).output().catch(() => undefined);
  return output?.success ? undefined : "there is no gcc";
}

/** Compiles C to the shared library `path`. */
export async function compileLibrary(
  path: string,
  source: string,
): Promise<void> {
  const child = new Deno.Command("gcc", {
    args: ["-shared", "-fPIC", "-x", "c", "-o", path, "-"],
    stdin: "piped",
    stderr: "inherit",
  }).spawn();
  const writer = child.stdin.getWriter();
  await writer.write(new TextEncoder().encode(source));
  await writer.close();
  const { success } = await child.status;
  if (!success) throw new Error(`Cannot compile ${path}: gcc failed`);
}
