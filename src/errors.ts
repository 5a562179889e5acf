/**
 * Errors that callers may want to tell apart. Wrong arguments are
 * `TypeError` or `RangeError`; these are for what comes from outside.
 *
 * @module
 */

/** A model file is missing, damaged or says something impossible. */
export class ModelFormatError extends Error {
  /** File at fault. */
  readonly file: string;

  /** Constructs a new instance from the file at fault and what is wrong. */
  constructor(file: string, message: string, options?: ErrorOptions) {
    super(`Cannot load ${file}: ${message}`, options);
    this.name = "ModelFormatError";
    this.file = file;
  }
}

/** A backend cannot be opened on this machine. */
export class BackendUnavailableError extends Error {
  /** Name of the backend. */
  readonly backend: string;
  /** What is missing. */
  readonly reason: string;
  /** What the user can do about it. */
  readonly remedy: string;

  /** Constructs a new instance from the backend, the reason and the remedy. */
  constructor(
    backend: string,
    { reason, remedy }: { reason: string; remedy: string },
  ) {
    super(`Cannot open the ${backend} backend: ${reason}: ${remedy}`);
    this.name = "BackendUnavailableError";
    this.backend = backend;
    this.reason = reason;
    this.remedy = remedy;
  }
}

/** The device went away while work was pending. */
export class DeviceLostError extends Error {
  /** Constructs a new instance from what the driver said. */
  constructor(message: string) {
    super(`Cannot continue: the device was lost: ${message}`);
    this.name = "DeviceLostError";
  }
}

/** A kernel did not compile, or failed while it ran. */
export class KernelError extends Error {
  /** Name of the kernel. */
  readonly kernel: string;

  /** Constructs a new instance from the kernel's name and what went wrong. */
  constructor(kernel: string, message: string) {
    super(`Cannot run kernel ${kernel}: ${message}`);
    this.name = "KernelError";
    this.kernel = kernel;
  }
}

/** A cache that does not compress has no room for the next token. */
export class CacheFullError extends Error {
  /** Slots per head. */
  readonly capacity: number;

  /** Constructs a new instance from the capacity and the tokens wanted. */
  constructor(capacity: number, wanted: number) {
    super(
      `Cannot hold ${wanted} tokens in a cache of ${capacity} slots that does not compress: use a larger capacity or a policy that merges or evicts`,
    );
    this.name = "CacheFullError";
    this.capacity = capacity;
  }
}
