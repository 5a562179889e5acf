import { assertEquals } from "@std/assert";
import { fromFileUrl } from "@std/path";
import { stdFlags } from "../offline_std/std_flags.ts";

Deno.test("importing the package needs no permission and touches nothing", async () => {
  const probe = fromFileUrl(new URL("import_probe.ts", import.meta.url));
  const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: ["run", "--no-check", "--no-prompt", ...await stdFlags(), probe],
    stdin: "null",
  }).output();
  assertEquals(code, 0, new TextDecoder().decode(stderr));
  assertEquals(JSON.parse(new TextDecoder().decode(stdout)), []);
});
