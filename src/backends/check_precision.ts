import type { Policy } from "../policies/parts.ts";
import type { Backend } from "./backend.ts";

/**
 * Checks that a backend stores keys and values as a policy asks. A policy that
 * asks for nothing, whose precision is `half`, takes what the backend has.
 *
 * @throws {TypeError} If it does not, naming both.
 */
export function checkPrecision(
  { name, precision: { kind } }: Policy,
  backend: Pick<Backend, "name" | "precision">,
): void {
  if (kind === "half" || kind === backend.precision) return;
  throw new TypeError(
    `Cannot use policy "${name}": its precision is of kind "${kind}", but the backend "${backend.name}" stores keys and values as "${backend.precision}": expected a backend that was opened with precision "${kind}"`,
  );
}

/** The name of a backend, with the type of its caches where it is not usual. */
export function backendLabel(
  { name, precision }: Pick<Backend, "name" | "precision">,
): string {
  return precision === "half" ? name : `${name} ${precision}`;
}
