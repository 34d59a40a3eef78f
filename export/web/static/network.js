// The backend that this browser can use, and the network, which runs in a worker.

/** {backend: "webgpu" | "wasm", threads, why}: WebGPU where the adapter computes in half precision, else WASM. */
export async function choose(query) {
  const isolated = self.crossOriginIsolated === true;
  const cores = navigator.hardwareConcurrency || 1;
  const threads = isolated ? Math.max(1, Math.min(query.threads || 4, cores)) : 1;
  const wasm = (why) => ({ backend: "wasm", threads, why: why + (isolated ? "" :
    "; one thread, as this server sends no cross-origin isolation headers") });
  if (query.backend === "wasm") return wasm("WASM was asked for");
  if (!navigator.gpu) return wasm("no WebGPU in this browser");
  const adapter = await navigator.gpu.requestAdapter().catch(() => null);
  if (!adapter) return wasm("WebGPU found no graphics adapter");
  if (!adapter.features.has("shader-f16")) return wasm("the graphics adapter has no half precision (shader-f16)");
  return { backend: "webgpu", threads, why: "half precision on the graphics processor" };
}

export class Network {
  #worker;
  #settings;
  #pending = new Map();
  #id = 0;
  #runs = 0;

  #start() {
    this.#worker?.terminate();
    this.#runs = 0;
    this.#worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
    this.#worker.onmessage = ({ data: { id, error, ...reply } }) => {
      const { resolve, reject } = this.#pending.get(id);
      this.#pending.delete(id);
      error ? reject(new Error(error)) : resolve(reply);
    };
    this.#worker.onerror = (event) => {
      for (const { reject } of this.#pending.values()) reject(new Error(event.message || "the worker did not start"));
      this.#pending.clear();
    };
  }

  /** settings: {backend, model, runtime, threads, size, recycle}; recycle: runs until the worker is replaced */
  open(settings) {
    this.#settings = settings;
    this.#start();
    return this.#post({ open: settings });
  }

  /** ImageData of the model's size, names of outputs -> {outputs, milliseconds} */
  async run(image, names) {
    if (++this.#runs > this.#settings.recycle && !this.#pending.size) await this.open(this.#settings);
    const frame = image.data.slice();
    return this.#post({ frame, names }, [frame.buffer]);
  }

  close() { this.#worker?.terminate(); }

  #post(message, transfer = []) {
    return new Promise((resolve, reject) => {
      this.#pending.set(++this.#id, { resolve, reject });
      this.#worker.postMessage({ id: this.#id, ...message }, transfer);
    });
  }
}
