/**
 * Stand-in for `@std/cli`: the stable part that this project uses.
 *
 * @module
 */
export * from "./parse_args.ts";
