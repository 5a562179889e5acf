/**
 * Checks that the package can be published, without publishing it.
 *
 * Where JSR can be reached this is `deno publish --dry-run`. Where it cannot,
 * the same command runs on a copy of the package in which the stand-ins are
 * ordinary modules: it checks slow types, types, exports and excluded modules
 * as it would on the original.
 *
 * @module
 */
import { findStandIns, stdFlags } from "./std_flags.ts";

const root = new URL("../../", import.meta.url);

async function publish(folder: URL): Promise<number> {
  const { code } = await new Deno.Command(Deno.execPath(), {
    // What is not committed yet may be checked too.
    args: ["publish", "--dry-run", "--allow-dirty"],
    cwd: folder,
    stdin: "null",
  }).spawn().status;
  return code;
}

async function publishCopy(importMapFlag: string): Promise<number> {
  const config = JSON.parse(
    await Deno.readTextFile(new URL("deno.json", root)),
  );
  const standIns = [...(await findStandIns()).values()];
  const include: string[] = [
    ...config.publish.include,
    ...standIns.map((module) => module.href.slice(root.href.length)),
  ];
  const copy = await Deno.makeTempDir({ prefix: "steadykv_publish_" });
  try {
    const folder = new URL(`file://${copy}/`);
    for (const path of include) {
      await copyTree(new URL(path, root), new URL(path, folder));
    }
    const [, json = ""] = importMapFlag.split("data:application/json,");
    const { imports } = JSON.parse(decodeURIComponent(json));
    for (const [name, module] of Object.entries<string>(imports)) {
      imports[name] = module.replace(root.href, "./");
    }
    const patched = {
      ...config,
      imports,
      publish: { ...config.publish, include },
    };
    await Deno.writeTextFile(
      new URL("deno.json", folder),
      JSON.stringify(patched),
    );
    return await publish(folder);
  } finally {
    await Deno.remove(copy, { recursive: true });
  }
}

async function copyTree(from: URL, to: URL): Promise<void> {
  const { isDirectory } = await Deno.stat(from);
  await Deno.mkdir(new URL(isDirectory ? to : "./", to), { recursive: true });
  if (!isDirectory) return await Deno.copyFile(from, to);
  for await (const entry of Deno.readDir(from)) {
    const name = `/${encodeURIComponent(entry.name)}`;
    await copyTree(new URL(from.href + name), new URL(to.href + name));
  }
}

if (import.meta.main) {
  const [flag] = await stdFlags();
  Deno.exit(flag === undefined ? await publish(root) : await publishCopy(flag));
}
