import {
  assertEquals,
  assertRejects,
  assertStringIncludes,
  assertThrows,
} from "@std/assert";
import { ModelFormatError } from "../../src/errors.ts";
import { openCheckpoint, PIECE_VALUES } from "../../src/model/checkpoint.ts";
import { parseShardIndex } from "../../src/model/shard_index.ts";
import { elementBytes, toFloats } from "../../src/model/tensor_values.ts";
import {
  type Files,
  safetensors,
  shardedFiles,
  TestFolder,
  type TestTensor,
  tinyTensors,
} from "./fixtures.ts";

/** A folder with one file of the tensors. */
function folderOf(tensors: Record<string, TestTensor>): Promise<TestFolder> {
  return TestFolder.create({
    "model.safetensors": safetensors(new Map(Object.entries(tensors))),
  });
}

/** All values of a tensor, read piece by piece. */
async function readAll(
  folder: TestFolder,
  name: string,
  { shape, half = false }: { shape: readonly number[]; half?: boolean },
): Promise<number[]> {
  using checkpoint = await openCheckpoint(folder.path);
  const tensor = checkpoint.weight(name, shape);
  const values: number[] = [];
  for await (const { raw } of checkpoint.pieces(tensor, { half })) {
    const target = new Float32Array(raw.length / elementBytes(tensor.type));
    toFloats(raw, { type: tensor.type, target });
    values.push(...target);
  }
  return values;
}

Deno.test("values of every float type arrive exactly", async () => {
  const cases = {
    // The smallest and largest numbers of each type, zeros and a fraction.
    BF16: [0, -0, 1.5, -3, 2 ** -133, 2 ** -126, 255 / 128 * 2 ** 127],
    F16: [0, -0, 1.5, -3, 2 ** -24, 2 ** -14, 65504],
    F32: [0, -0, 1.5, -3, 2 ** -149, 0.1, (2 - 2 ** -23) * 2 ** 127],
  };
  for (const [type, values] of Object.entries(cases)) {
    const shape = [7];
    await using folder = await folderOf({
      // An odd number of bytes before, so that nothing is aligned in the file.
      pad: { shape: [1], values: [1], type: "BF16" },
      x: { shape, values, type: type as keyof typeof cases },
    });
    const read = await readAll(folder, "x", { shape });
    assertEquals(read, [...Float32Array.from(values)], type);
  }
});

Deno.test("a tensor larger than a piece comes in whole rows", async () => {
  const [rows, columns] = [9, PIECE_VALUES / 4 + 1];
  const values = new Float32Array(rows * columns).map((_, i) => i % 1000);
  await using folder = await folderOf({
    x: { shape: [rows, columns], values, type: "F32" },
  });
  using checkpoint = await openCheckpoint(folder.path);
  const tensor = checkpoint.weight("x", [rows, columns]);
  const seen: [number, number][] = [];
  for await (const { row, raw } of checkpoint.pieces(tensor, { half: false })) {
    seen.push([row, raw.length / 4 / columns]);
    const floats = new Float32Array(raw.buffer, 0, raw.length / 4);
    assertEquals(floats[0], row * columns % 1000);
    assertEquals(floats.at(-1), (row * columns + floats.length - 1) % 1000);
  }
  assertEquals(seen, [[0, 3], [3, 3], [6, 3]]);
});

Deno.test("values that cannot be used are named by their place", async () => {
  const shape = [2, 3];
  const cases: [TestTensor["type"], number, boolean, boolean][] = [
    ["BF16", NaN, false, true],
    ["BF16", Infinity, false, true],
    ["F16", -Infinity, false, true],
    ["F16", NaN, true, true],
    ["F32", NaN, false, true],
    ["F32", -Infinity, true, true],
    ["F32", 65_505, true, true],
    ["F32", -65_505, true, true],
    ["F32", 65_505, false, false],
    ["F32", 65_504, true, false],
    ["BF16", 65_536, true, true],
    ["BF16", 65_536, false, false],
    ["BF16", 65_280, true, false],
    ["F16", 65_504, true, false],
  ];
  for (const [type, value, half, bad] of cases) {
    await using folder = await folderOf({
      x: { shape, values: [1, 2, 3, 4, value, 6], type: type! },
    });
    const reading = readAll(folder, "x", { shape, half });
    if (!bad) {
      assertEquals((await reading)[4], value, `${type} ${value}`);
      continue;
    }
    const error = await assertRejects(
      () => reading,
      ModelFormatError,
      'tensor "x" has a value at [1, 1] that cannot be used, expected finite numbers' +
        (half ? " of at most 65504" : ""),
      `${type} ${value}`,
    );
    assertEquals(error.file, folder.file("model.safetensors"));
  }
});

Deno.test("shards are found through the index, also behind links", async () => {
  const { "model-00002-of-00002.safetensors": second, ...files } =
    shardedFiles();
  await using folder = await TestFolder.create({ ...files, blob: second! });
  await Deno.symlink("blob", folder.file("model-00002-of-00002.safetensors"));
  using checkpoint = await openCheckpoint(folder.path);
  assertEquals(
    [...checkpoint.tensors.keys()].sort(),
    [...tinyTensors().keys()].sort(),
  );
  assertEquals(checkpoint.file, folder.file("model.safetensors.index.json"));
  for (const [name, { shape, values }] of tinyTensors()) {
    assertEquals(await readAll(folder, name, { shape }), [
      ...Array.from(values),
    ]);
  }
});

Deno.test("weight rejects another shape and another type", async () => {
  await using folder = await folderOf({
    x: { shape: [2, 3], values: new Array(6).fill(1) },
  });
  using checkpoint = await openCheckpoint(folder.path);
  const cases: [string, number[], string][] = [
    ["y", [2, 3], 'tensor "y" is missing, expected shape [2, 3]'],
    ["x", [3, 2], 'tensor "x" has shape [2, 3], expected [3, 2]'],
    ["x", [6], 'tensor "x" has shape [2, 3], expected [6]'],
  ];
  for (const [name, shape, says] of cases) {
    const error = assertThrows(
      () => checkpoint.weight(name, shape),
      ModelFormatError,
      says,
    );
    assertEquals(error.file, folder.file("model.safetensors"));
  }
});

Deno.test("reading stops when it is told to", async () => {
  await using folder = await folderOf({ x: { shape: [1], values: [1] } });
  using checkpoint = await openCheckpoint(folder.path);
  const tensor = checkpoint.weight("x", [1]);
  const signal = AbortSignal.abort(new Error("enough"));
  const pieces = checkpoint.pieces(tensor, { half: false, signal });
  await assertRejects(() => pieces.next(), Error, "enough");
});

Deno.test("a file that shrinks while it is open is an error", async () => {
  await using folder = await folderOf({ x: { shape: [2], values: [1, 2] } });
  using checkpoint = await openCheckpoint(folder.path);
  const tensor = checkpoint.weight("x", [2]);
  await Deno.truncate(folder.file("model.safetensors"), tensor.end - 1);
  const pieces = checkpoint.pieces(tensor, { half: false });
  await assertRejects(
    () => pieces.next(),
    ModelFormatError,
    "the file ends early, expected 1 more bytes",
  );
});

/** The sharded model with its index or shards changed. */
function changedIndex(
  change: (weightMap: Record<string, unknown>) => void,
): Files {
  const files = shardedFiles();
  const index = JSON.parse(files["model.safetensors.index.json"] as string);
  change(index.weight_map);
  files["model.safetensors.index.json"] = JSON.stringify(index);
  return files;
}

const escapes = [
  "../model.safetensors",
  "/etc/model.safetensors",
  "sub/model.safetensors",
  "sub\\model.safetensors",
  "C:model.safetensors",
  "..",
  ".",
  "",
  "model.bin",
  "a\0.safetensors",
  5,
  null,
];

for (const shard of escapes) {
  Deno.test(`an index that points to ${JSON.stringify(shard)} is rejected`, async () => {
    await using folder = await TestFolder.create(changedIndex((map) => {
      map["model.norm.weight"] = shard;
    }));
    const error = await assertRejects(
      () => openCheckpoint(folder.path),
      ModelFormatError,
      'for "model.norm.weight", expected the plain name of a .safetensors file',
    );
    assertEquals(error.file, folder.file("model.safetensors.index.json"));
  });
}

const first = "model-00001-of-00002.safetensors";
const second = "model-00002-of-00002.safetensors";

const badFolders: [string, () => Files, string, string][] = [
  ["no weights", () => ({}), "model.safetensors", "the file is missing"],
  [
    "a shard missing",
    () => {
      const { [second]: _, ...files } = shardedFiles();
      return files;
    },
    second,
    "the file is missing",
  ],
  [
    "a tensor in the wrong shard",
    () => changedIndex((map) => map["model.norm.weight"] = first),
    first,
    'tensor "model.norm.weight" is missing, expected it as',
  ],
  [
    "a tensor in no shard",
    () => changedIndex((map) => map["extra"] = first),
    first,
    'tensor "extra" is missing, expected it as',
  ],
  [
    "a tensor in two shards",
    () => ({
      ...shardedFiles(),
      [second]: safetensors(tinyTensors()),
    }),
    second,
    "is also in",
  ],
];

for (const [name, files, file, says] of badFolders) {
  Deno.test(`a folder with ${name} is rejected`, async () => {
    await using folder = await TestFolder.create(files());
    const error = await assertRejects(
      () => openCheckpoint(folder.path),
      ModelFormatError,
    );
    assertStringIncludes(error.message, says);
    assertEquals(error.file, folder.file(file));
  });
}

Deno.test("an index that is no index is rejected", () => {
  const cases: [string, string][] = [
    ["[]", "weight_map is missing"],
    ["{}", "weight_map is missing"],
    ['{"weight_map": []}', "weight_map is an array, expected an object"],
    ['{"weight_map": {}}', "weight_map is empty, expected tensors"],
    ['{"weight_map": {"a": "x", "a": "y"}}', 'key "a" occurs twice'],
    ["", "the JSON is damaged"],
  ];
  for (const [text, says] of cases) {
    assertThrows(
      () => parseShardIndex(text, "index.json"),
      ModelFormatError,
      says,
    );
  }
});

Deno.test("what is not a file is rejected and never waited for", async () => {
  await using folder = await TestFolder.create();
  await Deno.mkdir(folder.file("model.safetensors"));
  await assertRejects(
    () => openCheckpoint(folder.path),
    ModelFormatError,
    "it is not a file",
  );
  if (Deno.build.os === "windows") return;
  await Deno.remove(folder.file("model.safetensors"));
  await new Deno.Command("mkfifo", {
    args: [folder.file("model.safetensors")],
  }).output();
  await assertRejects(
    () => openCheckpoint(folder.path),
    ModelFormatError,
    "it is not a file",
  );
});
