/**
 * Runs the commands as a user does: in a process of their own, with the
 * permissions of the tasks.
 */
import { fromFileUrl } from "@std/path";
import { stdFlags } from "../offline_std/std_flags.ts";

/** Root of the repository, where tasks run. */
const root = fromFileUrl(new URL("../../", import.meta.url));

/** A program of `src/cli`. */
export type Program = "generate" | "chat" | "doctor" | "calibrate";

/** What a program printed, and its exit status. */
export interface Outcome {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

/** Starts a program. Standard input is closed after `stdin`, if that is given. */
export async function startCli(
  program: Program,
  args: readonly string[],
): Promise<Deno.ChildProcess> {
  return new Deno.Command(Deno.execPath(), {
    args: [
      ...["run", "--no-check", "--no-prompt", "--allow-read", "--allow-ffi"],
      ...(program === "calibrate" ? ["--allow-write"] : []),
      ...await stdFlags(),
      ...[`src/cli/${program}.ts`, ...args],
    ],
    cwd: root,
    env: { NO_COLOR: "1" },
    ...{ stdin: "piped", stdout: "piped", stderr: "piped" },
  }).spawn();
}

/** Runs a program to its end with `stdin` as its input. */
export async function runCli(
  program: Program,
  args: readonly string[],
  stdin = "",
): Promise<Outcome> {
  const child = await startCli(program, args);
  const [{ code, stdout, stderr }] = await Promise.all([
    child.output(),
    writeAll(child, stdin),
  ]);
  return { code, stdout: decode(stdout), stderr: decode(stderr) };
}

/** Writes to a program that may end before it has read everything. */
async function writeAll(child: Deno.ChildProcess, text: string): Promise<void> {
  const writer = child.stdin.getWriter();
  try {
    await writer.write(new TextEncoder().encode(text));
    await writer.close();
  } catch (error) {
    if (!(error instanceof Deno.errors.BrokenPipe)) throw error;
  }
}

/** Bytes to text. */
export function decode(bytes: Uint8Array): string {
  return new TextDecoder().decode(bytes);
}
