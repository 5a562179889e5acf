/** The emulated device finds what it is there to find. */
import {
  assertEquals,
  assertGreater,
  assertLess,
  assertMatch,
} from "@std/assert";
import {
  buildEmulation,
  emulationMissing,
  openEmulation,
} from "./build_emulation.ts";

const missing = await emulationMissing();

/** Runs a kernel with a mistake; see `emulator/faults.cu`. */
async function run(
  mistake: number,
): Promise<{ text: string; words: Uint32Array }> {
  const library = Deno.dlopen(await buildEmulation(), {
    emulation_run_mistake: {
      parameters: ["u32", "buffer", "buffer"],
      result: "void",
    },
  });
  const text = new Uint8Array(512);
  const words = new Uint32Array(4);
  library.symbols.emulation_run_mistake(mistake, text, words);
  library.close();
  const end = text.indexOf(0);
  return { text: new TextDecoder().decode(text.subarray(0, end)), words };
}

function test(name: string, mistake: number, said: RegExp): void {
  Deno.test({
    name: `an emulated device finds ${name}${
      missing === undefined ? "" : ` (ignored: ${missing})`
    }`,
    ignore: missing !== undefined,
    fn: async () => {
      const { text } = await run(mistake);
      assertMatch(text, said);
    },
  });
}

test("nothing wrong with a kernel that is right", 0, /^no error$/);
test(
  "a write beyond the end",
  1,
  /^an illegal memory access was encountered: write of 4 bytes/,
);
test("a barrier that is not there", 2, /race: .* of shared memory/);
test("a barrier of a warp that is not there", 3, /race: .* of shared memory/);
test("threads at different barriers", 4, /at the barrier in faults\.cu:\d+/);
test("a lane that has left", 5, /threads wait for each other/);
test(
  "two blocks that write to one place",
  7,
  /race: .* that thread .* another/,
);
test("an address that is not aligned", 8, /^misaligned address: /);
test("a kernel that ends before those in front of it", 9, /without having/);

Deno.test({
  name: "an emulated device finds a copy that nobody waited for",
  ignore: missing !== undefined,
  fn: async () => {
    const { text, words } = await run(6);
    assertMatch(text, /thread 0 ended with 1 copies under way/);
    // What shared memory holds before anything is written to it.
    assertEquals([...words], Array(4).fill(2 ** 32 - 1));
  },
});

Deno.test({
  name: "a stream runs its work again when a capture that it was in has ended",
  ignore: missing !== undefined,
  fn: async () => {
    const library = Deno.dlopen(await buildEmulation(), {
      emulation_run_after_capture: { parameters: [], result: "u32" },
    });
    const runs = library.symbols.emulation_run_after_capture();
    library.close();
    assertEquals(runs, 1);
  },
});

/** Address space of this process, in bytes. */
async function addressSpace(): Promise<number> {
  const { stdout } = await new Deno.Command("grep", {
    args: ["^VmSize:", `/proc/${Deno.pid}/status`],
  }).output();
  return 1024 * parseInt(new TextDecoder().decode(stdout).slice(7));
}

Deno.test({
  name: "an emulated device gives its memory back before its library is closed",
  ignore: missing !== undefined,
  fn: async () => {
    // What is given back when the process ends takes so long that threads that
    // end meanwhile use other libraries after those have freed their memory.
    const library = Deno.dlopen(await buildEmulation(), {});
    const before = await addressSpace();
    const backend = await openEmulation();
    const opened = await addressSpace();
    await backend[Symbol.asyncDispose]();
    const after = await addressSpace();
    library.close();
    // The addresses of a device take 2^36 bytes, and what is noted of them
    // several times that.
    assertGreater(opened - before, 2 ** 36);
    assertLess(after - before, 2 ** 36);
  },
});
