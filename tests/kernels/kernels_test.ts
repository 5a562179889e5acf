import { CpuBackend } from "../../src/backends/cpu/cpu_backend.ts";
import { testedBackends } from "./backends.ts";
import { tryCase } from "./kernel_case.ts";

for (
  const { name, missing, cases, open, precision } of await testedBackends()
) {
  Deno.test({
    name: missing === undefined
      ? `${name} computes what the reference does:`
      : `${name} kernels are not tested: ${missing}`,
    ignore: missing !== undefined,
    async fn(t) {
      await using backend = await open();
      await using reference = new CpuBackend();
      for (const kernelCase of cases) {
        await t.step(kernelCase.name, async () => {
          await tryCase(kernelCase, { backend, reference, precision });
        });
      }
    },
  });
}
