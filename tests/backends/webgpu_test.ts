import {
  assert,
  assertEquals,
  assertGreater,
  assertLess,
  assertRejects,
  assertStringIncludes,
  assertThrows,
} from "@std/assert";
import type { DeviceBuffer, Program } from "../../src/backends/backend.ts";
import { probeWebGpu } from "../../src/backends/webgpu/probe.ts";
import { composeShader } from "../../src/backends/webgpu/shader_source.ts";
import { shaders } from "../../src/backends/webgpu/shaders.generated.ts";
import {
  WebGpuBackend,
  type WebGpuOptions,
} from "../../src/backends/webgpu/webgpu_backend.ts";
import { DeviceLostError, KernelError } from "../../src/errors.ts";

const probe = await probeWebGpu();

function webGpuTest(
  name: string,
  body: (backend: WebGpuBackend) => Promise<void>,
  options: WebGpuOptions = {},
): void {
  Deno.test({
    name: probe.available
      ? `webgpu ${name}`
      : `webgpu ${name} (ignored: ${probe.reason})`,
    ignore: !probe.available,
    async fn() {
      await using backend = await WebGpuBackend.open(options);
      await body(backend);
    },
  });
}

/** A program that adds 1 to `hidden`, once for each element of its row. */
function counter(
  backend: WebGpuBackend,
  { width = 8, calls = 1 }: { width?: number; calls?: number } = {},
): { hidden: DeviceBuffer; program: Program } {
  const f32 = (label: string, length: number) =>
    backend.allocate(label, "f32", length);
  const u32 = (label: string, length: number) =>
    backend.allocate(label, "u32", length);
  const hidden = f32("hidden", width);
  const input = f32("input", width);
  const weight = backend.allocateMatrix("identity", {
    rows: width,
    columns: width,
  });
  const identity = new Float32Array(width * width);
  for (let i = 0; i < width; i++) identity[i * width + i] = 1;
  backend.writeRows(weight, identity, { firstRow: 0 });
  backend.write(input, new Float32Array(width).fill(1));
  const step = {
    kind: "decode",
    rows: 1,
    tokens: u32("tokens", 1),
    chunk: u32("chunk", 4),
    state: u32("state", 8),
  } as const;
  const program = backend.record("count", (kernels) => {
    for (let i = 0; i < calls; i++) {
      kernels.projectAdd({ hidden, input, weight, step });
    }
  });
  return { hidden, program };
}

webGpuTest("reads in flight come in order", async (backend) => {
  const { hidden, program } = counter(backend);
  const reads = Array.from({ length: 40 }, () => {
    program.run(3);
    return backend.read(hidden, 1, 2);
  });
  const results = await Promise.all(reads);
  assertEquals(
    results.map(({ f32 }) => [...f32]),
    reads.map((_, i) => [3 * (i + 1), 3 * (i + 1)]),
  );
});

webGpuTest("runs long programs many times", async (backend) => {
  const { hidden, program } = counter(backend, { calls: 300 });
  program.run(7);
  assertEquals((await backend.read(hidden)).f32[0], 2100);
});

webGpuTest("accounts for every byte", async (backend) => {
  assertEquals(backend.bytesAllocated, 0);
  const buffers = [
    backend.allocate("halves", "half", 7),
    backend.allocate("floats", "f32", 1000),
    backend.allocate("one", "u32", 1),
    backend.allocateMatrix("matrix", { rows: 5, columns: 12 }),
  ];
  const held = buffers.reduce((sum, { byteLength }) => sum + byteLength, 0);
  assertEquals(held, 16 + 4000 + 16 + 5 * 16 * 2);
  assertEquals(backend.bytesAllocated, held);

  const { program, hidden } = counter(backend);
  const before = backend.bytesAllocated;
  program.run(5);
  await backend.read(hidden);
  const after = backend.bytesAllocated;
  // One staging buffer; and no more from now on.
  assertGreater(after, before);
  for (let i = 0; i < 20; i++) {
    program.run(5);
    await backend.read(hidden);
  }
  assertEquals(backend.bytesAllocated, after);

  program[Symbol.dispose]();
  assertLess(backend.bytesAllocated, after);
  for (const buffer of buffers) buffer[Symbol.dispose]();
  for (const buffer of buffers) buffer[Symbol.dispose]();
  const left = backend.bytesAllocated;
  hidden[Symbol.dispose]();
  assertEquals(backend.bytesAllocated, left - hidden.byteLength);
});

webGpuTest("converts halves both ways", async (backend) => {
  const buffer = backend.allocate("halves", "half", 9);
  backend.write(buffer, new Float32Array([1, -2, 0.5, 65504]), 2);
  backend.write(buffer, new Float32Array([7]), 8);
  assertEquals([...(await backend.read(buffer)).f32], [
    ...[0, 0, 1, -2, 0.5, 65504, 0, 0, 7],
  ]);
  assertEquals([...(await backend.read(buffer, 3, 3)).f32], [-2, 0.5, 65504]);
  assertEquals([...(await backend.read(buffer, 8)).f32], [7]);
  for (const offset of [4, 9]) {
    assertEquals((await backend.read(buffer, offset, 0)).f32.length, 0);
  }
});

webGpuTest("refuses what halves cannot hold", async (backend) => {
  const buffer = backend.allocate("keys", "half", 8);
  for (const value of [70_000, -1e9, NaN, Infinity]) {
    assertThrows(
      () => backend.write(buffer, new Float32Array([0, value])),
      RangeError,
      `Cannot write ${value} to keys`,
    );
  }
  const matrix = backend.allocateMatrix("gate", { rows: 2, columns: 4 });
  assertThrows(
    () =>
      backend.writeRows(matrix, new Float32Array([0, 0, 0, 1e6]), {
        firstRow: 0,
      }),
    RangeError,
    "Cannot write 1000000 to gate",
  );
  assertThrows(
    () => backend.write(buffer, new Float32Array(2), 1),
    RangeError,
    "halves are written in pairs",
  );
  assertThrows(
    () => backend.write(buffer, new Uint32Array(2)),
    TypeError,
    "holds halves",
  );
  await Promise.resolve();
});

webGpuTest("refuses what does not fit", async (backend) => {
  const buffer = backend.allocate("small", "f32", 4);
  assertThrows(() => backend.write(buffer, new Float32Array(5)), RangeError);
  assertThrows(() => backend.write(buffer, new Float32Array(2), 3), RangeError);
  await assertRejects(() => backend.read(buffer, 2, 3), RangeError);
  const matrix = backend.allocateMatrix("m", { rows: 3, columns: 8 });
  assertThrows(
    () =>
      backend.writeRows(matrix, new Float32Array(16), {
        firstRow: 0,
        rowStep: 3,
      }),
    RangeError,
    "of m",
  );
  assertThrows(
    () => backend.allocateMatrix("odd", { rows: 1, columns: 6 }),
    RangeError,
    "multiple of 4",
  );
});

webGpuTest(
  "names what is too large, before it is allocated",
  async (backend) => {
    const before = backend.bytesAllocated;
    assertThrows(
      () => backend.allocate("layer 3 keys", "half", 2 ** 20),
      RangeError,
      "Cannot allocate layer 3 keys of 2097152 bytes: the device allows 65536",
    );
    assertThrows(
      () =>
        backend.allocateMatrix("head", {
          rows: 64,
          columns: 1024,
          rowGroup: 64,
        }),
      RangeError,
      "Cannot allocate matrix head: 64 rows that stay together take 131072 bytes",
    );
    assertEquals(backend.bytesAllocated, before);
    // Rows that need not stay together are split.
    const matrix = backend.allocateMatrix("head", { rows: 64, columns: 1024 });
    assertEquals(matrix.byteLength, 131072);
    await Promise.resolve();
  },
  { maxBufferBytes: 65536 },
);

webGpuTest("writes rows apart and across blocks", async (backend) => {
  const [rows, columns] = [24, 20];
  const data = Float32Array.from({ length: rows * columns }, (_, i) => i % 512);
  const matrix = backend.allocateMatrix("split", {
    rows,
    columns,
    rowGroup: 2,
  });
  for (const parity of [0, 1]) {
    const half = new Float32Array(rows / 2 * columns);
    for (let row = 0; row < rows / 2; row++) {
      const from = (2 * row + parity) * columns;
      half.set(data.subarray(from, from + columns), row * columns);
    }
    backend.writeRows(matrix, half, { firstRow: parity, rowStep: 2 });
  }
  // Rows are looked up as embeddings.
  const hidden = backend.allocate("hidden", "f32", rows * columns);
  const tokens = backend.allocate("tokens", "u32", rows);
  const state = backend.allocate("state", "u32", rows * 8);
  const chunk = backend.allocate("chunk", "u32", 4);
  const seen = backend.allocate("seen", "u32", rows);
  backend.write(tokens, Uint32Array.from({ length: rows }, (_, i) => i));
  const program = backend.record("look up", (kernels) =>
    kernels.embed({
      hidden,
      seen,
      embedding: matrix,
      step: { kind: "decode", rows, tokens, state, chunk },
      sizes: {
        hidden: columns,
        heads: 1,
        kvHeads: 1,
        headDim: 4,
        ffn: 4,
        vocabulary: rows,
        normEpsilon: 1e-5,
      },
    }));
  program.run();
  assertEquals((await backend.read(hidden)).f32, data);
}, { maxBlockBytes: 300 });

webGpuTest("rejects reads quickly when the device is lost", async (backend) => {
  const { hidden, program } = counter(backend, { width: 512, calls: 200 });
  program.run(20);
  const pending = [backend.read(hidden), backend.read(hidden)];
  const start = performance.now();
  backend.device.destroy();
  for (const read of pending) await assertRejects(() => read, DeviceLostError);
  await assertRejects(() => backend.read(hidden), DeviceLostError);
  assertThrows(() => program.run(), DeviceLostError);
  assertThrows(() => backend.allocate("more", "f32", 4), DeviceLostError);
  assertLess(performance.now() - start, 5000);
  program[Symbol.dispose]();
});

webGpuTest("names the kernel that does not compile", async (backend) => {
  const { hidden, program } = counter(backend);
  program.run();
  const error = await assertRejects(() => backend.read(hidden), KernelError);
  assertEquals(error.kernel, "project_add");
  assertStringIncludes(error.message, "no_such_function");
  // It stays broken, and says so again.
  await assertRejects(() => backend.read(hidden), KernelError);
}, {
  shaders: {
    ...shaders,
    "project_add.wgsl": shaders["project_add.wgsl"]!.replace(
      "let i = first_slot + slot;",
      "let i = no_such_function(slot);",
    ),
  },
});

webGpuTest("reports what fails while it runs", async (backend) => {
  const { hidden, program } = counter(backend);
  const other = backend.allocate("other", "f32", 4);
  program.run();
  await backend.read(hidden);
  hidden[Symbol.dispose]();
  program.run();
  const error = await assertRejects(() => backend.read(other), KernelError);
  assertStringIncludes(error.message, "destroyed");
});

webGpuTest("says that it was disposed", async (backend) => {
  const { hidden, program } = counter(backend);
  await backend[Symbol.asyncDispose]();
  await backend[Symbol.asyncDispose]();
  await assertRejects(() => backend.read(hidden), TypeError, "was disposed");
  assertThrows(
    () => backend.allocate("x", "f32", 1),
    TypeError,
    "was disposed",
  );
  assertThrows(() => program.run(), DeviceLostError);
});

webGpuTest("says that a program was disposed", async (backend) => {
  const { program } = counter(backend);
  program[Symbol.dispose]();
  program[Symbol.dispose]();
  assertThrows(
    () => program.run(),
    TypeError,
    "program count: it was disposed",
  );
  await Promise.resolve();
});

webGpuTest("keeps two backends apart", async (backend) => {
  await using other = await WebGpuBackend.open();
  const mine = counter(backend);
  const theirs = counter(other);
  mine.program.run(2);
  theirs.program.run(5);
  other.device.destroy();
  assertEquals((await backend.read(mine.hidden)).f32[0], 2);
  await assertRejects(() => other.read(theirs.hidden), DeviceLostError);
});

Deno.test("every shader declares what it takes", () => {
  for (const path of Object.keys(shaders)) {
    if (path.startsWith("lib/")) continue;
    const name = path.replace(".wgsl", "");
    const { bindings, params, code } = composeShader(name, shaders);
    assertEquals(
      bindings.map(({ index }) => index),
      bindings.map((_, i) => i),
      `bindings of ${name}`,
    );
    assertEquals(code.match(/@binding\(/g)?.length, bindings.length);
    assert(bindings.length > 0, `bindings of ${name}`);
    for (const { name: param } of params) {
      assertStringIncludes(code, `params.${param}`, `parameters of ${name}`);
    }
  }
});
