/**
 * Runs the examples, one after the other: all of them, or those named.
 *
 * ```sh
 * deno task examples
 * deno task examples hello custom_policy
 * ```
 *
 * @module
 */

/** In the order in which they are best read. */
const examples = [
  "hello",
  "batch",
  "chat",
  "long_context",
  "compare_policies",
  "custom_policy",
];

async function main(names: readonly string[]): Promise<number> {
  const unknown = names.filter((name) => !examples.includes(name));
  if (unknown.length > 0) {
    console.error(
      `Cannot run example ${unknown.join(", ")}: expected ${
        examples.join(", ")
      }`,
    );
    return 2;
  }
  const failed: string[] = [];
  const start = performance.now();
  for (const name of names.length > 0 ? names : examples) {
    console.log(`\n== examples/${name}.ts ==\n`);
    try {
      await import(`./${name}.ts`);
    } catch (error) {
      console.error(error);
      failed.push(name);
    }
  }
  const seconds = ((performance.now() - start) / 1000).toFixed(0);
  console.log(`\nDone in ${seconds} s`);
  if (failed.length > 0) console.error(`FAILED: ${failed.join(", ")}`);
  return failed.length > 0 ? 1 : 0;
}

if (import.meta.main) Deno.exit(await main(Deno.args));
