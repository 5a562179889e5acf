/**
 * Finds a WebGPU adapter, or the reason why there is none.
 *
 * @module
 */

/** What {@linkcode probeWebGpu} found. */
export type WebGpuProbe =
  | {
    /** There is an adapter. */
    readonly available: true;
    /** The adapter in words. */
    readonly adapter: string;
    /** Optional features that it has. */
    readonly features: readonly string[];
    /** Its limits, by their WebGPU names. */
    readonly limits: Readonly<Record<string, number>>;
  }
  | WebGpuUnavailable;

/** Why there is no adapter, and what to do about it. */
export interface WebGpuUnavailable {
  /** There is no adapter. */
  readonly available: false;
  /** What is missing. */
  readonly reason: string;
  /** What would help. */
  readonly remedy: string;
}

/** Limits that matter to the kernels. */
export const usedLimits = [
  "maxBufferSize",
  "maxStorageBufferBindingSize",
  "maxStorageBuffersPerShaderStage",
  "maxComputeWorkgroupStorageSize",
  "maxComputeInvocationsPerWorkgroup",
  "maxComputeWorkgroupSizeX",
  "maxComputeWorkgroupsPerDimension",
] as const;

/** Says whether WebGPU can be used here. Opens no device. */
export async function probeWebGpu(): Promise<WebGpuProbe> {
  const found = await findAdapter();
  if ("available" in found) return found;
  return {
    available: true,
    adapter: describeAdapter(found.adapter),
    features: [...found.adapter.features].sort(),
    limits: Object.fromEntries(
      usedLimits.map((name) => [name, found.adapter.limits[name]]),
    ),
  };
}

/** The adapter to use, or why there is none. */
export async function findAdapter(): Promise<
  { adapter: GPUAdapter } | WebGpuUnavailable
> {
  if (navigator.gpu === undefined) {
    return {
      available: false,
      reason: "this runtime has no WebGPU",
      remedy: "use Deno 2.9 or later",
    };
  }
  const adapter = await navigator.gpu.requestAdapter({
    powerPreference: "high-performance",
  });
  return adapter === null ? explainNoAdapter() : { adapter };
}

/** An adapter in words. */
export function describeAdapter({ info }: GPUAdapter): string {
  return info.description || info.device || info.vendor || "unknown adapter";
}

/** Folders where a Linux system keeps its libraries. */
const LIBRARY_FOLDERS = [
  "/usr/lib/x86_64-linux-gnu",
  "/usr/lib/aarch64-linux-gnu",
  "/usr/lib64",
  "/usr/lib",
  "/usr/local/lib",
  "/lib64",
  "/lib",
];

/** Folders where drivers leave the manifests that the Vulkan loader reads. */
const DRIVER_FOLDERS = [
  "/usr/share/vulkan/icd.d",
  "/usr/local/share/vulkan/icd.d",
  "/etc/vulkan/icd.d",
];

const INSTALL_DRIVER =
  "install a Vulkan driver, for example the package mesa-vulkan-drivers, which also runs without a GPU";

function explainNoAdapter(): WebGpuUnavailable {
  if (Deno.build.os !== "linux") {
    return {
      available: false,
      reason: "the system offers no adapter",
      remedy: "update the graphics driver",
    };
  }
  const libraries = listFiles(LIBRARY_FOLDERS);
  const drivers = listFiles(DRIVER_FOLDERS);
  if (libraries === undefined || drivers === undefined) {
    return {
      available: false,
      reason: "no Vulkan adapter was found",
      remedy:
        "install the Vulkan loader (libvulkan.so.1, package libvulkan1) and a driver, or run with --allow-read=/usr,/etc,/lib,/lib64 to learn which is missing",
    };
  }
  if (!libraries.includes("libvulkan.so.1")) {
    return {
      available: false,
      reason: "the Vulkan loader libvulkan.so.1 was not found",
      remedy: "install it, for example with the package libvulkan1",
    };
  }
  if (!drivers.some((name) => name.endsWith(".json"))) {
    return {
      available: false,
      reason: "no Vulkan driver is installed",
      remedy: INSTALL_DRIVER,
    };
  }
  return {
    available: false,
    reason: "no installed Vulkan driver has found a device",
    remedy: `check that the GPU is visible here, or ${INSTALL_DRIVER}`,
  };
}

/** Names in some folders; undefined if one of them may not be read. */
function listFiles(folders: readonly string[]): string[] | undefined {
  const names: string[] = [];
  for (const path of folders) {
    const { state } = Deno.permissions.querySync({ name: "read", path });
    if (state !== "granted") return undefined;
    try {
      for (const { name } of Deno.readDirSync(path)) names.push(name);
    } catch (error) {
      if (!(error instanceof Deno.errors.NotFound)) throw error;
    }
  }
  return names;
}
