import { OUTPUT } from "./colours.js";

// AR, where the browser gives the camera's picture to a WebXR session (Chrome on Android).

const VERTEX = `#version 300 es
  uniform vec2 scale; out vec2 at;
  void main() { vec2 p = vec2(gl_VertexID & 1, gl_VertexID >> 1); at = p; gl_Position = vec4((p * 2. - 1.) * scale, 0, 1); }`;
const FRAGMENT = `#version 300 es
  precision mediump float; uniform sampler2D image; uniform vec2 part; uniform float alpha; in vec2 at; out vec4 colour;
  void main() { colour = vec4(texture(image, (at - .5) * part + .5).rgb, alpha); }`;

/** Shows the AR button if this browser can; `state` is the page's. */
export async function offerAR(state, { button, leave, root, picture, showMessage }) {
  const able = await navigator.xr?.isSessionSupported("immersive-ar").catch(() => false);
  if (!able || !("XRWebGLBinding" in window)) return;
  button.hidden = false;
  button.onclick = () => enter(state, { leave, root, picture }).catch((error) => showMessage(`AR did not start: ${error.message}`, true));
}

async function enter(state, { leave, root, picture }) {
  const session = await navigator.xr.requestSession("immersive-ar",
    { requiredFeatures: ["camera-access"], optionalFeatures: ["dom-overlay"], domOverlay: { root } });
  const gl = document.createElement("canvas").getContext("webgl2", { xrCompatible: true });
  const binding = new XRWebGLBinding(session, gl), layer = new XRWebGLLayer(session, gl);
  await session.updateRenderState({ baseLayer: layer });
  const space = await session.requestReferenceSpace("viewer");
  const screen = painter(gl), side = state.facts.px, small = target(gl, side), overlay = gl.createTexture();
  let busy = false, ready = false;
  const wasRunning = state.running;
  state.running = false;
  leave.hidden = false;
  leave.onclick = () => session.end();
  session.addEventListener("end", () => { leave.hidden = true; state.running = wasRunning; });

  session.requestAnimationFrame(function frame(_, xrFrame) {
    session.requestAnimationFrame(frame);
    const view = xrFrame.getViewerPose(space)?.views[0];
    if (!view?.camera) return;
    const { width, height } = view.camera, square = Math.min(width, height);
    if (!busy) {
      gl.bindFramebuffer(gl.FRAMEBUFFER, small.framebuffer);
      gl.viewport(0, 0, side, side);
      screen(binding.getCameraImage(view.camera), [1, 1], [square / width, square / height], 1);
      const image = new ImageData(side, side), rows = new Uint8Array(4 * side * side);
      gl.readPixels(0, 0, side, side, gl.RGBA, gl.UNSIGNED_BYTE, rows);
      for (let y = 0; y < side; y++)                                  // WebGL's first row is the lowest
        image.data.set(rows.subarray(4 * side * (side - 1 - y), 4 * side * (side - y)), 4 * side * y);
      const focal = view.projectionMatrix[5] / 2 * height * side / square;  // px: the view covers the camera's picture
      const scale = state.facts.canonical_focal ? focal / state.facts.canonical_focal : 1;
      busy = true;
      const mode = state.mode === "none" ? "depth" : state.mode;
      state.network.run(image, [OUTPUT[mode]]).then(({ outputs }) => {
        gl.bindTexture(gl.TEXTURE_2D, overlay);
        gl.pixelStorei(gl.UNPACK_FLIP_Y_WEBGL, true);
        gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE,
          picture(mode, outputs, scale));
        for (const [name, value] of [[gl.TEXTURE_MIN_FILTER, gl.LINEAR], [gl.TEXTURE_MAG_FILTER, gl.LINEAR],
          [gl.TEXTURE_WRAP_S, gl.CLAMP_TO_EDGE], [gl.TEXTURE_WRAP_T, gl.CLAMP_TO_EDGE]])
          gl.texParameteri(gl.TEXTURE_2D, name, value);
        ready = true;
      }).finally(() => { busy = false; });
    }
    const { x, y, width: w, height: h } = layer.getViewport(view);
    gl.bindFramebuffer(gl.FRAMEBUFFER, layer.framebuffer);
    gl.viewport(x, y, w, h);
    gl.clearColor(0, 0, 0, 0);
    gl.clear(gl.COLOR_BUFFER_BIT);
    if (ready) screen(overlay, [Math.min(1, h / w), Math.min(1, w / h)], [1, 1], 0.6);
  });
}

/** draw(texture, scale of the quad, part of the texture around its middle, alpha) */
function painter(gl) {
  const program = gl.createProgram();
  for (const [kind, source] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    gl.attachShader(program, shader);
  }
  gl.linkProgram(program);
  const place = (name) => gl.getUniformLocation(program, name);
  return (texture, scale, part, alpha) => {
    gl.useProgram(program);
    gl.activeTexture(gl.TEXTURE0);
    gl.bindTexture(gl.TEXTURE_2D, texture);
    gl.uniform2fv(place("scale"), scale);
    gl.uniform2fv(place("part"), part);
    gl.uniform1f(place("alpha"), alpha);
    gl.enable(gl.BLEND);
    gl.blendFunc(gl.SRC_ALPHA, gl.ONE_MINUS_SRC_ALPHA);
    gl.drawArrays(gl.TRIANGLE_STRIP, 0, 4);
  };
}

function target(gl, side) {
  const texture = gl.createTexture(), framebuffer = gl.createFramebuffer();
  gl.bindTexture(gl.TEXTURE_2D, texture);
  gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, side, side, 0, gl.RGBA, gl.UNSIGNED_BYTE, null);
  gl.bindFramebuffer(gl.FRAMEBUFFER, framebuffer);
  gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, texture, 0);
  return { framebuffer };
}
