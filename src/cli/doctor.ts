/**
 * `deno task doctor`: which backends this machine has, and what the others
 * need.
 *
 * @module
 */
import type { BackendName } from "../backends/backend.ts";
import { openBackend } from "../backends/open_backend.ts";
import { BackendUnavailableError } from "../errors.ts";
import { parseFlagsOnly, toggle, wantsHelp } from "./flags.ts";
import { helpText, wrap } from "./help.ts";
import { commonFlags } from "./model_flags.ts";
import { type Command, runCommand } from "./run_command.ts";
import { print } from "./terminal.ts";

/** What is known about a backend. */
export type Diagnosis =
  & { readonly name: BackendName }
  & ({
    readonly available: true;
    /** The device in words. */
    readonly description: string;
    /** Bits of a stored key or value. */
    readonly bits: number;
  } | {
    readonly available: false;
    readonly reason: string;
    /** What to do about it, where that is known. */
    readonly remedy?: string;
  });

const flags = {
  json: toggle("Print one JSON object"),
  ...commonFlags,
} as const;

const help = helpText({
  summary: "Says which backends this machine has and, for each that it has " +
    "not, why not and what to do about it.",
  usage: "deno task doctor [flags]",
  sections: { "Flags": flags },
  notes: ["Exit status: 0 if at least one backend works, 1 if none does."],
});

/** The command; see {@linkcode runCommand} for what it returns. */
export const doctor: Command = async (args) => {
  if (wantsHelp(args)) {
    await print(`${help}\n`);
    return 0;
  }
  const values = parseFlagsOnly(args, flags);
  const backends: Diagnosis[] = [];
  // In the order in which `auto` tries them.
  for (const name of ["cuda", "webgpu", "cpu"] as const) {
    backends.push(await diagnose(name));
  }
  const auto = backends.find(({ available }) => available)?.name ?? null;
  const { version: { deno }, build: { os, arch } } = Deno;
  await print(
    values.json
      ? `${JSON.stringify({ deno, os, arch, backends, auto })}\n`
      : `${row("deno", `${deno} on ${os} ${arch}`)}\n` +
        backends.map((backend) => `${describe(backend)}\n`).join("") +
        `\n--backend auto takes ${auto ?? "none of them"}\n`,
  );
  return auto === null ? 1 : 0;
};

/** Opens a backend and closes it again. */
export async function diagnose(name: BackendName): Promise<Diagnosis> {
  try {
    const { backend } = await openBackend(name);
    await using opened = backend;
    const { description, halfBytes } = opened;
    return { name, available: true, description, bits: 8 * halfBytes };
  } catch (error) {
    if (!(error instanceof Error)) throw error;
    return error instanceof BackendUnavailableError
      ? {
        ...{ name, available: false },
        reason: error.reason,
        remedy: error.remedy,
      }
      : { name, available: false, reason: error.message };
  }
}

/** A backend in a few lines. */
function describe(backend: Diagnosis): string {
  if (backend.available) {
    const { name, description, bits } = backend;
    const detail = `${description}; keys and values in ${bits} bits`;
    return `${row(name, "available")}\n${row("", detail)}`;
  }
  const { name, reason, remedy } = backend;
  return [
    row(name, "not available"),
    row("", `because ${reason}`),
    ...(remedy === undefined ? [] : [row("", `to change that, ${remedy}`)]),
  ].join("\n");
}

function row(name: string, text: string): string {
  return name.padEnd(8) + wrap(text, 8);
}

if (import.meta.main) Deno.exit(await runCommand(doctor, Deno.args));
