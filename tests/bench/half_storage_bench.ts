/**
 * Packed halves against the `shader-f16` feature: the product of a matrix of
 * 16-bit floats and a vector, with the weights read as two halves to a 32-bit
 * word and read as `f16`. Says what decision 10 of ARCHITECTURE.md rests on.
 *
 * `STEADYKV_BENCH_ROWS` sets the rows of 8192 columns (default 256); give a
 * large GPU 65536, which is 1 GiB, so that no cache holds them.
 */

/** Dispatches per iteration: one read-back costs more than a product. */
const REPEATS = 100;
const COLUMNS = 8192;

/** The two ways to declare and to read eight weights. */
const variants = {
  packed: {
    head: "@group(0) @binding(0) var<storage, read> w: array<vec4<u32>>;",
    load: `let q = w[at];
      let a = vec4(unpack2x16float(q.x), unpack2x16float(q.y));
      let b = vec4(unpack2x16float(q.z), unpack2x16float(q.w));`,
  },
  f16: {
    head: `enable f16;
    struct Eight { a: vec4<f16>, b: vec4<f16> }
    @group(0) @binding(0) var<storage, read> w: array<Eight>;`,
    load: `let q = w[at];
      let a = vec4<f32>(q.a);
      let b = vec4<f32>(q.b);`,
  },
};

function shader({ head, load }: { head: string; load: string }): string {
  return `${head}
  @group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
  @group(0) @binding(2) var<storage, read_write> y: array<f32>;
  var<workgroup> sums: array<f32, 256>;

  @compute @workgroup_size(256)
  fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
  ) {
    let lane = thread % 32u;
    let row = group.x * 8u + thread / 32u;
    var sum = 0.0;
    for (var c = lane; c < ${COLUMNS / 8}u; c += 32u) {
      let at = row * ${COLUMNS / 8}u + c;
      ${load}
      sum += dot(a, x[2u * c]) + dot(b, x[2u * c + 1u]);
    }
    sums[thread] = sum;
    workgroupBarrier();
    for (var half = 16u; half > 0u; half >>= 1u) {
      if (lane < half) { sums[thread] += sums[thread + half]; }
      workgroupBarrier();
    }
    if (lane == 0u) { y[row] = sums[thread]; }
  }`;
}

async function openDevice(): Promise<GPUDevice | undefined> {
  const adapter = await navigator.gpu.requestAdapter();
  if (!adapter?.features.has("shader-f16")) {
    console.error("Not measured: no WebGPU adapter with shader-f16");
    return undefined;
  }
  const { maxBufferSize, maxStorageBufferBindingSize } = adapter.limits;
  return await adapter.requestDevice({
    requiredFeatures: ["shader-f16"],
    requiredLimits: { maxBufferSize, maxStorageBufferBindingSize },
  });
}

const device = await openDevice();
if (device !== undefined) {
  const rows = Number(Deno.env.get("STEADYKV_BENCH_ROWS") ?? 256);
  const { STORAGE, COPY_SRC, COPY_DST, MAP_READ } = GPUBufferUsage;
  const create = (size: number, usage: number) =>
    device.createBuffer({ size, usage });
  const weights = create(rows * COLUMNS * 2, STORAGE | COPY_DST);
  const block = new Float16Array(COLUMNS * 8).map(() => Math.random() - 0.5);
  for (let row = 0; row < rows; row += 8) {
    device.queue.writeBuffer(weights, row * COLUMNS * 2, block);
  }
  const input = create(COLUMNS * 4, STORAGE | COPY_DST);
  device.queue.writeBuffer(
    input,
    0,
    new Float32Array(COLUMNS).map(() => Math.random()),
  );
  const output = create(rows * 4, STORAGE | COPY_SRC);
  const staging = create(rows * 4, MAP_READ | COPY_DST);

  for (const [name, variant] of Object.entries(variants)) {
    const module = device.createShaderModule({ code: shader(variant) });
    const pipeline = device.createComputePipeline({
      layout: "auto",
      compute: { module, entryPoint: "main" },
    });
    const bindGroup = device.createBindGroup({
      layout: pipeline.getBindGroupLayout(0),
      entries: [weights, input, output].map((buffer, binding) => ({
        binding,
        resource: { buffer },
      })),
    });
    Deno.bench({
      name,
      group: `${REPEATS} products of ${rows} x ${COLUMNS} halves`,
      baseline: name === "packed",
      async fn() {
        const encoder = device.createCommandEncoder();
        const pass = encoder.beginComputePass();
        pass.setPipeline(pipeline);
        pass.setBindGroup(0, bindGroup);
        for (let i = 0; i < REPEATS; i++) pass.dispatchWorkgroups(rows / 8);
        pass.end();
        encoder.copyBufferToBuffer(output, 0, staging, 0, rows * 4);
        device.queue.submit([encoder.finish()]);
        await staging.mapAsync(GPUMapMode.READ);
        staging.unmap();
      },
    });
  }
}
