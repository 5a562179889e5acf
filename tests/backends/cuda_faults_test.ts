/**
 * What happens to the CUDA backend when something goes wrong: what is said, and
 * what can still be done.
 */
import { assertEquals, assertRejects } from "@std/assert";
import { CpuBackend } from "../../src/backends/cpu/cpu_backend.ts";
import { openCuda } from "../../src/backends/cuda/open_cuda.ts";
import { openEmulation } from "../cuda_emulation/build_emulation.ts";
import { decodeCases } from "../kernels/decode_cases.ts";
import { tryCase } from "../kernels/kernel_case.ts";
import { modelSizes } from "../kernels/matrix_cases.ts";
import { play, type Scene } from "../kernels/scene.ts";
import { type Candidate, eachBackend, emulated } from "./each_backend.ts";

function cudaTest(
  name: string,
  body: (candidate: Candidate) => Promise<void>,
): void {
  eachBackend(name, (_, candidate) => body(candidate), { only: ["cuda"] });
}

/** The scene with a kernel behind it that cannot be launched: it has no rows. */
function withBadLaunch(scene: Scene): Scene {
  const sizes = modelSizes({});
  const { vocabulary: rows, hidden: columns } = sizes;
  const data = new Float32Array(rows * columns);
  return {
    ...scene,
    matrices: { ...scene.matrices, embedding: { rows, columns, data } },
    record(kernels, stage) {
      scene.record(kernels, stage);
      const words = stage.buffer("state");
      kernels.embed({
        hidden: stage.buffer("output"),
        seen: words,
        embedding: stage.matrix("embedding"),
        step: {
          kind: "decode",
          rows: 0,
          tokens: words,
          chunk: words,
          state: words,
        },
        sizes,
      });
    },
  };
}

for (const checkEveryKernel of [false, true]) {
  cudaTest(
    `a launch that fails leaves nothing to the next program${
      checkEveryKernel ? "; in checking mode neither" : ""
    }`,
    async ({ label }) => {
      const open = label === emulated.label ? openEmulation : openCuda;
      await using backend = await open({ checkEveryKernel });
      await using reference = new CpuBackend();
      // Attention begins work beside the main stream, which nobody joins.
      const [attends] = decodeCases;
      const before = backend.bytesAllocated;
      await assertRejects(
        () => play(backend, withBadLaunch(attends!.draw(1).scene)),
        TypeError,
        "cannot run kernel embed: invalid",
      );
      assertEquals(backend.bytesAllocated, before);
      await tryCase(attends!, { backend, reference });
    },
  );
}
