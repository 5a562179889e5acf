import type { Backend } from "../../../src/backends/backend.ts";

/** Memory at one moment, in bytes. */
export interface MemoryInUse {
  /** What the backend says it holds. */
  readonly backend: number;
  /** What `nvidia-smi` says that the GPU holds, of all processes. */
  readonly gpu?: number;
  /** The process. */
  readonly process: number;
  /** Live objects of the JavaScript heap. */
  readonly heap: number;
}

/** Asks the backend, the driver and the process. */
export async function memoryInUse(backend: Backend): Promise<MemoryInUse> {
  const { rss, heapUsed } = Deno.memoryUsage();
  const gpu = backend.name === "cuda" ? await gpuMemory() : undefined;
  return {
    backend: backend.bytesAllocated,
    ...(gpu !== undefined && { gpu: gpu.used }),
    process: rss,
    heap: heapUsed,
  };
}

/** Bytes that the first GPU has in use and free; undefined if not known. */
export async function gpuMemory(): Promise<
  { used: number; free: number } | undefined
> {
  const query = "--query-gpu=memory.used,memory.free";
  try {
    const { success, stdout } = await new Deno.Command("nvidia-smi", {
      args: [query, "--format=csv,noheader,nounits", "--id=0"],
      stderr: "null",
    }).output();
    const text = new TextDecoder().decode(stdout);
    const [used, free] = text.split(",").map((n) => Number(n) * 2 ** 20);
    return success && Number.isFinite(used) && Number.isFinite(free)
      ? { used: used!, free: free! }
      : undefined;
  } catch (error) {
    const known = error instanceof Deno.errors.NotFound ||
      error instanceof Deno.errors.NotCapable;
    if (known) return undefined;
    throw error;
  }
}
