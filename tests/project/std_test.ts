import { assertEquals } from "@std/assert";
import { findStandIns } from "../offline_std/std_flags.ts";
import { listFiles, readText } from "./files.ts";

Deno.test("everything imported from @std has a stand-in", async () => {
  const standIns = await findStandIns();
  const missing: string[] = [];
  const imports =
    /(?:import|export) (?:type )?\{([^}]*)\} from "(@std\/[^"]+)"/g;
  for (const path of await listFiles()) {
    if (!path.endsWith(".ts")) continue;
    for (
      const [, list = "", name = ""] of (await readText(path)).matchAll(imports)
    ) {
      const module = standIns.get(name);
      if (module === undefined) {
        missing.push(`${path}: ${name}`);
        continue;
      }
      const source = await Deno.readTextFile(module);
      for (const item of list.split(",").map((item) => item.trim())) {
        const original = item.replace(/^type /, "").split(" as ")[0]!;
        if (!new RegExp(`\\b${original}\\b`).test(source)) {
          missing.push(`${path}: ${original} of ${name}`);
        }
      }
    }
  }
  assertEquals(missing, []);
});
