import {
  assertEquals,
  assertGreater,
  assertLess,
  assertStringIncludes,
} from "@std/assert";
import { findStandIns, FLAGS_VARIABLE, stdFlags } from "./std_flags.ts";

/** Runs `body` without a known answer and without Deno's real cache. */
async function withoutAnswer(
  body: (denoDir: string) => Promise<void>,
): Promise<void> {
  const known = Deno.env.get(FLAGS_VARIABLE);
  Deno.env.delete(FLAGS_VARIABLE);
  const denoDir = await Deno.makeTempDir();
  try {
    await body(denoDir);
  } finally {
    await Deno.remove(denoDir, { recursive: true });
    if (known !== undefined) Deno.env.set(FLAGS_VARIABLE, known);
  }
}

/** A JSR registry in which every package has every module, all of them empty. */
async function registry(path: string, exports: string[]): Promise<Response> {
  const [, , name, version, file] = path.split(/\/|_(?=meta\.json)/);
  if (version === "meta.json") {
    return Response.json({
      scope: "std",
      name,
      latest: "1.99.0",
      versions: { "1.99.0": {} },
    });
  }
  const module = "export {};\n";
  if (file !== "meta.json") return new Response(module);
  const hash = await crypto.subtle.digest(
    "SHA-256",
    new TextEncoder().encode(module),
  );
  const checksum = `sha256-${new Uint8Array(hash).toHex()}`;
  return Response.json({
    exports: Object.fromEntries(exports.map((path) => [path, "./mod.ts"])),
    manifest: { "/mod.ts": { size: module.length, checksum } },
  });
}

async function withServer(
  handler: (path: string) => Promise<Response>,
  body: (url: string) => Promise<void>,
): Promise<void> {
  const stopped = new AbortController();
  const server = Deno.serve({
    hostname: "127.0.0.1",
    port: 0,
    signal: stopped.signal,
    onListen() {},
  }, (request) => handler(new URL(request.url).pathname));
  try {
    await body(`http://127.0.0.1:${server.addr.port}/`);
  } finally {
    stopped.abort();
    await server.finished;
  }
}

Deno.test("stdFlags() adds nothing when JSR can be reached, or its cache", async () => {
  const names = [...(await findStandIns()).keys()];
  const exports = names.map((name) =>
    name.split("/").slice(2).reduce((path, part) => `${path}/${part}`, ".")
  );
  await withoutAnswer(async (DENO_DIR) => {
    let requests = 0;
    const handler = (path: string): Promise<Response> => {
      requests++;
      return registry(path, exports);
    };
    await withServer(handler, async (JSR_URL) => {
      assertEquals(await stdFlags({ env: { DENO_DIR, JSR_URL } }), []);
      assertGreater(requests, 0);
      requests = 0;
      assertEquals(await stdFlags({ env: { DENO_DIR, JSR_URL } }), []);
      assertEquals(requests, 0);
    });
  });
});

Deno.test("stdFlags() adds the stand-ins when JSR refuses", async () => {
  await withoutAnswer(async (DENO_DIR) => {
    const JSR_URL = "http://127.0.0.1:1/";
    const [flag = ""] = await stdFlags({ env: { DENO_DIR, JSR_URL } });
    const [option, json = ""] = flag.split("data:application/json,");
    assertEquals(option, "--import-map=");
    const { imports } = JSON.parse(decodeURIComponent(json));
    assertStringIncludes(imports["@std/assert"], "offline_std/assert/mod.ts");
    assertStringIncludes(
      imports["@std/cli/parse-args"],
      "offline_std/cli/parse_args.ts",
    );
    assertEquals(imports["valibot"].split("@")[0], "npm:valibot");
    assertEquals(imports["valibot/"].split("@")[0], "npm:/valibot");
    assertEquals(Object.values<string>(imports).filter(isJsr), []);
    // The task shell splits what it is given at spaces.
    assertEquals(flag.match(/\s/), null);
  });
});

Deno.test("stdFlags() does not wait for a registry that hangs", async () => {
  await withoutAnswer(async (DENO_DIR) => {
    const hanging = Promise.withResolvers<Response>();
    await withServer(() => hanging.promise, async (JSR_URL) => {
      const start = performance.now();
      const env = { DENO_DIR, JSR_URL };
      const flags = await stdFlags({ timeLimit: 500, env });
      assertEquals(flags.length, 1);
      assertLess(performance.now() - start, 5_000);
      hanging.resolve(new Response());
    });
  });
});

Deno.test("stdFlags() repeats an answer that is known", async () => {
  await withoutAnswer(async () => {
    Deno.env.set(FLAGS_VARIABLE, "");
    assertEquals(await stdFlags(), []);
    Deno.env.set(FLAGS_VARIABLE, "--import-map=x");
    assertEquals(await stdFlags(), ["--import-map=x"]);
    Deno.env.delete(FLAGS_VARIABLE);
  });
});

function isJsr(target: string): boolean {
  return target.startsWith("jsr:");
}
