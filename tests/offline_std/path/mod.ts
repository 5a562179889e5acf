/**
 * Stand-in for `@std/path`: the functions that this project uses.
 *
 * @module
 */
export {
  basename,
  dirname,
  extname,
  isAbsolute,
  join,
  normalize,
  relative,
  resolve,
} from "node:path";
export { fileURLToPath as fromFileUrl } from "node:url";
export { pathToFileURL as toFileUrl } from "node:url";
