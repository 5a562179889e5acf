import { CpuBackend } from "../../src/backends/cpu/cpu_backend.ts";
import { testedBackends } from "./backends.ts";
import { tryCase } from "./kernel_case.ts";

for (const { name, missing, cases, lacks, open } of await testedBackends()) {
  Deno.test({
    name: missing === undefined
      ? `${name} computes what the reference does:`
      : `${name} kernels are not tested: ${missing}`,
    ignore: missing !== undefined,
    async fn(t) {
      await using backend = await open();
      await using reference = new CpuBackend();
      for (const kernelCase of cases) {
        const lacking = lacks?.(kernelCase);
        await t.step({
          name: lacking === undefined
            ? kernelCase.name
            : `${kernelCase.name} (${lacking})`,
          ignore: lacking !== undefined,
          fn: () => tryCase(kernelCase, { backend, reference }),
        });
      }
    },
  });
}
