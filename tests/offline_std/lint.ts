/**
 * Runs `deno lint`, which looks for the packages of `deno.json` and has no
 * option for an import map. Where JSR cannot be reached, it is told to look
 * where the answer is a quick no: it then lints all the same, while it would
 * wait without end for a registry that does not answer.
 *
 * @module
 */
import { stdFlags } from "./std_flags.ts";

if (import.meta.main) {
  const [flag] = await stdFlags();
  const { code } = await new Deno.Command(Deno.execPath(), {
    args: ["lint", ...Deno.args],
    // Nothing listens on the first port.
    env: flag === undefined ? {} : { JSR_URL: "http://127.0.0.1:1/" },
    stdin: "null",
  }).spawn().status;
  Deno.exit(code);
}
