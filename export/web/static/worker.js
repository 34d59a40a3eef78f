// The network in a thread of its own, so that the page stays smooth.
let ort, session, pixels, px, queue = Promise.resolve();

onmessage = ({ data: { id, open, frame, names } }) => {
  queue = queue.then(() => open ? load(open) : run(frame, names))   // a session runs one frame at a time
    .then((reply) => postMessage({ id, ...reply }), (error) => postMessage({ id, error: String(error?.message ?? error) }));
};

/** Loads onnxruntime for a backend, and the model. */
async function load({ backend, model, runtime, threads, size }) {
  session?.release();
  ort ??= await import(new URL(runtime.script, location));
  ort.env.logLevel = "error";
  ort.env.wasm.numThreads = threads;
  ort.env.wasm.wasmPaths = { mjs: new URL(runtime.glue, location).href };
  ort.env.wasm.wasmBinary ??= await bytes(runtime.wasm);
  session = await ort.InferenceSession.create(await bytes(model), {
    executionProviders: [backend], preferredOutputLocation: backend === "webgpu" ? "gpu-buffer" : "cpu", graphOptimizationLevel: "all", logSeverityLevel: 3 });
  px = size;
  pixels = new Float32Array(3 * px * px);
  return { inputs: session.inputNames, outputs: session.outputNames };
}

/** frame: RGBA bytes of px * px -> data and dims of the outputs `names`, and the milliseconds that took. Others are not read
 *  back from a graphics processor. */
async function run(frame, names) {
  const n = px * px;
  for (let i = 0; i < n; i++)
    for (let c = 0; c < 3; c++) pixels[c * n + i] = frame[4 * i + c] / 255;
  const begin = performance.now();
  const results = await session.run({ [session.inputNames[0]]: new ort.Tensor("float32", pixels, [1, 3, px, px]) }, names);
  const outputs = {};
  for (const [name, tensor] of Object.entries(results)) {
    outputs[name] = { data: Float32Array.from(await tensor.getData()), dims: tensor.dims };
    tensor.dispose();
  }
  return { outputs, milliseconds: performance.now() - begin };
}

/** A file, unpacked if it is gzip (a server that declares the encoding lets the browser unpack it). */
async function bytes(path) {
  const response = await fetch(new URL(path, location));
  if (!response.ok) throw new Error(`${path}: the server returned ${response.status}`);
  const content = await response.arrayBuffer(), [a, b] = new Uint8Array(content, 0, 2);
  if (a !== 0x1f || b !== 0x8b) return content;
  return new Response(new Blob([content]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
}
