/**
 * Backends that cannot be opened, and why.
 *
 * @module
 */
import type { BackendUnavailableError } from "../errors.ts";

/** One line that says which backends `auto` passed over. */
export function describeSkipped(
  used: string,
  skipped: readonly BackendUnavailableError[],
): string {
  const reasons = skipped.map((error) =>
    `${error.backend} is not available: ${error.reason}`
  );
  return `Using ${used}; ${reasons.join("; ")}`;
}
