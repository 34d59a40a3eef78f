import { FAR_M, NEAR_M, OUTPUT, depthGradient, picture } from "./colours.js";
import { describe, find, leadsBack } from "./match.js";
import { Network, choose } from "./network.js";
import { device, LEAST, row } from "./result.js";
import * as sources from "./sources.js";

const $ = (id) => document.getElementById(id);
const query = new URLSearchParams(location.search);
const POINTS = ["#ffd60a", "#ff5ca8", "#38e0ff", "#b3f34d"];       // visible on light and dark pictures
const VIEW = query.get("focal") ? "" : ", if the view is 53° wide (?focal=PX)";  // of the network's input
const MODES = { depth: `${NEAR_M} m <i style="background:${depthGradient}"></i> ${FAR_M} m${VIEW}`,
  normals: '<b style="background:#ff8080"></b> right <b style="background:#80ff80"></b> up <b style="background:#8080ff"></b> to you',
  geometry: "alike in colour, alike in geometry", none: "" };

const DRAWN = [...Object.values(OUTPUT), "descriptors"];
const RECYCLE = navigator.vendor?.startsWith("Apple") ? 300 : Infinity; // WebKit's memory grows until it ends the page (onnxruntime #27584)

const state = { facts: null, network: null, model: null, provider: "", source: null, view: null, kept: null, points: [], mode: "normals",
  running: true, times: [], rates: [], loads: 0, keepNext: true };

/** A view: {image at the model's size, the network's outputs, milliseconds}. */
async function runFrame() {
  const side = state.facts.px;
  runFrame.canvas ??= new OffscreenCanvas(side, side);
  const context = runFrame.canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  state.source.draw(context, side);
  const image = context.getImageData(0, 0, side, side);
  const { outputs, milliseconds } = await state.network.run(image, wanted());
  return { image, outputs, milliseconds };
}

/** The outputs that are drawn now; of a graphics processor no others are read back. */
function wanted() {
  if (state.provider !== "WebGPU") return DRAWN;
  const names = DRAWN.filter((name) => name === (OUTPUT[state.mode] ?? "colours"));
  return state.points.length || state.keepNext ? [...names, "descriptors"] : names;
}

/** Reads the outputs that a view lacks. */
async function complete(view, names) {
  const missing = names.filter((name) => !(name in view.outputs));
  if (missing.length) Object.assign(view.outputs, (await state.network.run(view.image, missing)).outputs);
}

async function loop() {
  const turn = ++loop.turn;
  while (loop.turn === turn) {
    if (state.running && state.network && state.source && !document.hidden) {
      try {
        const view = await runFrame();
        if (loop.turn !== turn) return;
        show(view);
      } catch (error) {
        showMessage(`The network stopped: ${error.message}`, true);
        return;
      }
      if (state.source.still) state.running = false;
    }
    await new Promise(requestAnimationFrame);
  }
}
loop.turn = 0;

function show(view) {
  state.view = view;
  if (state.keepNext) {
    state.keepNext = false;
    keep();
    if (!state.points.length && state.source.name === "bundled clip")
      for (const [x, y] of state.facts.clip.points) point(state.kept, x, y);
  }
  state.times = [...state.times.slice(-299), view.milliseconds];
  state.rates = [...state.rates.slice(-19), performance.now()];
  draw();
  facts();
}

async function draw() {
  for (const [canvas, view] of [[$("now"), state.view], [$("kept"), state.kept]]) if (view) {
    await complete(view, wanted());
    paint(canvas, view);
  }
}

function paint(canvas, view) {
  const context = canvas.getContext("2d"), size = canvas.width;
  context.imageSmoothingQuality = "high";
  context.globalAlpha = 1;
  stamp(context, view.image, size);
  if (state.mode !== "none") {
    context.globalAlpha = $("opacity").value / 100;
    stamp(context, picture(state.mode, view.outputs, metres(query.get("focal"))), size);
    context.globalAlpha = 1;
  }
  state.points.forEach((p, i) => mark(context, size, locate(p, view), POINTS[i]));
}

/** Of one of depth, for a camera of this focal length, px at the network's input; 1 if it is not known. */
export function metres(focal) {
  return focal && state.facts.canonical_focal ? focal / state.facts.canonical_focal : 1;
}

function stamp(context, image, size) {
  stamp.canvas ??= new OffscreenCanvas(1, 1);
  Object.assign(stamp.canvas, { width: image.width, height: image.height });
  stamp.canvas.getContext("2d").putImageData(image, 0, 0);
  context.drawImage(stamp.canvas, 0, 0, size, size);
}

/** Where a view shows a tapped point: {x, y, sure}; sure is false if it is probably out of view. */
function locate({ x, y, view: origin, descriptor }, view) {
  if (view === origin) return { x, y, sure: true };
  const place = find(view.outputs.descriptors, descriptor);
  return { ...place, sure: leadsBack(origin.outputs.descriptors, x, y, view.outputs.descriptors, place) };
}

/** A ring at the point; dashed and faint if it is probably out of view. */
function mark(context, size, { x, y, sure }, colour) {
  context.save();
  context.globalAlpha = sure ? 1 : 0.45;
  context.setLineDash(sure ? [] : [4, 5]);
  for (const [style, width] of [["#000000b0", 7], [colour, 3.5]]) {
    Object.assign(context, { strokeStyle: style, lineWidth: width });
    context.beginPath();
    context.arc(x * size, y * size, 12, 0, 2 * Math.PI);
    context.stroke();
  }
  context.restore();
}

function point(view, x, y) {
  if (state.points.length === POINTS.length) state.points.shift();
  state.points.push({ descriptor: describe(view.outputs.descriptors, x, y), view, x, y });
}

function keep() {
  state.kept = state.view;
}

function facts() {
  const mean = (list) => list.reduce((a, b) => a + b, 0) / list.length;
  const span = state.rates.at(-1) - state.rates[0];
  $("fact-time").textContent = `${mean(state.times.slice(-20)).toFixed(0)} ms`;
  $("fact-rate").textContent = state.source.still ? "still picture" : span ? `${(1000 * (state.rates.length - 1) / span).toFixed(1)} a second` : "–";
}

function showMessage(text, bad = false) {
  $("message").textContent = text;
  $("message").classList.toggle("bad", bad);
}

/** Opens a backend and a model file; falls back to WASM when WebGPU fails. */
async function open(name) {
  const { facts } = state;
  let chosen = await choose({ backend: query.get("backend"), threads: Number(query.get("threads")) });
  const load = async () => {
    const model = facts.models.find((m) => m.name === name) ?? facts.models.find((m) => m.for.includes(chosen.backend));
    const network = new Network();
    try {
      const loaded = await network.open({ backend: chosen.backend, model: model.file, runtime: facts.runtime[chosen.backend],
        threads: chosen.threads, size: facts.px, recycle: Number(query.get("recycle")) || RECYCLE });
      const missing = ["depth", "normals", "descriptors", "colours"].filter((output) => !loaded.outputs.includes(output));
      if (missing.length) throw new Error(`the model has no ${missing.join(", ")}; export it with: vega3d export web`);
    } catch (error) {
      network.close();
      throw error;
    }
    return [network, model];
  };
  let opened;
  try {
    opened = await load();
  } catch (error) {
    if (chosen.backend !== "webgpu") throw error;
    chosen = { ...await choose({ backend: "wasm", threads: chosen.threads }), why: `WebGPU failed (${error.message})` };
    opened = await load();
  }
  state.network?.close();
  const [network, model] = opened;
  const provider = chosen.backend === "webgpu" ? "WebGPU" : `WASM, ${chosen.threads} thread${chosen.threads > 1 ? "s" : ""}`;
  Object.assign(state, { network, model, provider, times: [], rates: [], keepNext: true, points: [] });
  $("model").value = model.name;
  $("fact-backend").textContent = provider;
  $("fallback").textContent = chosen.backend === "webgpu" || query.get("backend") === "wasm" ? ""
    : `Runs on the processor (WASM), slower than on a graphics processor: ${chosen.why}.`;
  $("why").textContent = `Why ${chosen.backend === "webgpu" ? "WebGPU" : "WASM"}: ${chosen.why}. ${model.name}: ${model.size_mb.toFixed(1)} MB, ${model.what}.`;
}

async function use(button, start) {
  try {
    showMessage(button === "use-camera" ? "Waiting for the camera …" : "");
    const source = await start();
    state.source?.stop();
    Object.assign(state, { source, keepNext: true, points: [], running: true, rates: [] });
    $("source-name").textContent = source.name;
    for (const id of ["use-clip", "use-camera"]) $(id).classList.toggle("on", id === button);
    $("pause").textContent = "Pause";
    showMessage("");
    loop();
  } catch (error) {
    showMessage(error.message, true);
  }
}

/** Copies a row for docs/phones.md; shows it where the clipboard is not allowed. */
async function copyResult() {
  const left = LEAST - state.times.length;
  if (left > 0) return showMessage(`Let it run: ${left} more frames are needed for a result.`);
  const text = row({ ...await device(state.provider === "WebGPU"), provider: state.provider, model: state.model, times: state.times });
  await navigator.clipboard.writeText(text).then(() => showMessage("Copied: a row for docs/phones.md."), () => showMessage(text));
  return text;
}

function addListeners() {
  $("copy").onclick = copyResult;
  $("modes").onchange = (event) => { state.mode = event.target.value; $("legend").innerHTML = MODES[state.mode]; draw(); };
  $("opacity").oninput = draw;
  $("keep").onclick = () => { if (state.view) { keep(); draw(); } };
  $("clear").onclick = () => { state.points = []; draw(); };
  $("pause").onclick = () => { state.running = !state.running; $("pause").textContent = state.running ? "Pause" : "Go on"; };
  $("use-clip").onclick = () => use("use-clip", () => sources.clip(state.facts.clip));
  $("use-camera").onclick = () => use("use-camera", sources.camera);
  $("file").onchange = ({ target }) => target.files[0] && use("", () => sources.file(target.files[0])).then(() => { target.value = ""; });
  $("model").onchange = async ({ target }) => {
    loop.turn++;
    showMessage("Loading …");
    await open(target.value).then(() => showMessage(""), (error) => showMessage(error.message, true));
    loop();
  };
  for (const [id, name] of [["now", "view"], ["kept", "kept"]])
    $(id).onclick = async (event) => {
      const view = state[name], box = event.target.getBoundingClientRect();
      if (!view) return;
      await complete(view, ["descriptors"]);
      point(view, (event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
      draw();
    };
}

/** Caches the page for offline use. If the server sends no headers for threads, reloads once to get them from the worker. */
async function installServiceWorker() {
  if (!("serviceWorker" in navigator) || query.has("plain")) return;
  await navigator.serviceWorker.register("sw.js", { updateViaCache: "none" });
  if (self.crossOriginIsolated || sessionStorage.getItem("isolated")) return;
  sessionStorage.setItem("isolated", "tried");
  await navigator.serviceWorker.ready;
  if (!navigator.serviceWorker.controller)
    await new Promise((done) => navigator.serviceWorker.addEventListener("controllerchange", done, { once: true }));
  location.reload();
  await new Promise(() => {});
}

async function start() {
  state.facts = await (await fetch("page.json")).json();
  const isolated = self.crossOriginIsolated;
  const installed = installServiceWorker().catch(() => {});     // no service worker (http, private window): the page works without it
  if (!isolated) await installed;
  $("model").replaceChildren(...state.facts.models.map((m) => new Option(m.label, m.name)));
  $("legend").innerHTML = MODES[state.mode];
  $("about").textContent = state.facts.about;
  addListeners();
  await open(query.get("model"));
  await use("use-clip", () => sources.clip(state.facts.clip));
  const { offerAR } = await import("./xr.js");
  await offerAR(state, { button: $("use-ar"), leave: $("leave-ar"), root: $("ar-root"), picture, showMessage });
}

/** For tests and the console: frame i of the clip through the network -> {outputs, overlay RGBA of a mode, milliseconds}. */
window.page = {
  state,
  async frame(i, mode = "depth") {
    loop.turn++;
    state.source.fixedFrame = i;
    const view = await runFrame();
    show(view);
    await complete(view, [OUTPUT[mode]]);
    return { outputs: view.outputs, overlay: [...picture(mode, view.outputs).data], milliseconds: view.milliseconds };
  },
  find, describe, leadsBack, copyResult, wanted,
};

start().catch((error) => showMessage(error.message, true));
