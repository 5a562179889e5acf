// Imports the package and prints what it reached for, as JSON. Run by
// import_test.ts without any permission.
const touched: string[] = [];

/** Notes every call of a function of `owner`, and makes it fail. */
function watch(owner: object, label: string, names: readonly string[]): void {
  for (const name of names) {
    if (typeof Reflect.get(owner, name) !== "function") continue;
    Reflect.set(owner, name, () => {
      touched.push(`${label}.${name}`);
      throw new Error(`${label}.${name} was called`);
    });
  }
}

const print = console.log;
watch(Deno, "Deno", Object.keys(Deno));
watch(Deno.env, "Deno.env", Object.keys(Deno.env));
watch(navigator.gpu, "navigator.gpu", ["requestAdapter"]);
watch(globalThis, "globalThis", ["fetch", "WebSocket", "Worker"]);

await import("../../mod.ts");
await import("../../src/evaluate/mod.ts");
print(JSON.stringify(touched));
