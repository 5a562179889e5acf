import { assertEquals, assertRejects } from "@std/assert";
import { WebGpuBackend } from "../../src/backends/webgpu/webgpu_backend.ts";
import { DeviceLostError } from "../../src/errors.ts";
import { Generator } from "../../src/generate/generator.ts";
import { candidates } from "../backends/each_backend.ts";

const MODEL = new URL("../../examples/models/docs-7m/", import.meta.url);
const { unavailable } = candidates.find(({ name }) => name === "webgpu")!;

Deno.test({
  name: `losing the device ends a running generation with an error${
    unavailable ? ` (ignored: ${unavailable})` : ""
  }`,
  ignore: unavailable !== undefined,
  async fn() {
    await using backend = await WebGpuBackend.open();
    await using generator = await Generator.load(MODEL, { backend });
    let seen = 0;
    await assertRejects(
      async () => {
        for await (
          const _ of generator.generate("The SELECT", { maxTokens: 5000 })
        ) if (++seen === 3) backend.device.destroy();
      },
      DeviceLostError,
    );
    await assertRejects(
      () => generator.generateText("The SELECT"),
      DeviceLostError,
    );
    assertEquals(seen < 100, true);
  },
});
