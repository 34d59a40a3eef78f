// Outputs as colours, by the formulas of infer/pictures.py; a test compares the two.
export const NEAR_M = 0.5, FAR_M = 8; // fixed: colours that follow the range of each frame flicker
const STOPS = [[255, 244, 214], [255, 201, 120], [246, 138, 89], [214, 81, 99], [156, 50, 118], [93, 34, 116], [38, 20, 78]];

/** metres -> [r, g, b], 0 to 255 */
function depthColour(metres) {
  const along = Math.log(Math.max(metres, 1e-3) / NEAR_M) / Math.log(FAR_M / NEAR_M);
  const at = Math.min(Math.max(along, 0), 1) * (STOPS.length - 1);
  const low = Math.min(Math.floor(at), STOPS.length - 2), share = at - low;
  return [0, 1, 2].map((c) => Math.floor(STOPS[low][c] * (1 - share) + STOPS[low + 1][c] * share + 0.5));
}

export const OUTPUT = { depth: "depth", normals: "normals", geometry: "colours" }; // of each mode

/** The output that a mode shows -> ImageData of its size; scale: metres of one of depth. */
export function picture(mode, outputs, scale = 1) {
  const { data, dims } = outputs[OUTPUT[mode]], side = dims[3], n = side * side;
  const image = new ImageData(side, side);
  for (let i = 0; i < n; i++) {
    const rgb = mode === "depth" ? depthColour(scale * data[i]) : [0, 1, 2].map((c) => byte(
      mode === "normals" ? (data[c * n + i] * (c ? -1 : 1) + 1) / 2 : data[c * n + i]));
    image.data.set(rgb, 4 * i);
    image.data[4 * i + 3] = 255;
  }
  return image;
}

const byte = (share) => Math.floor(Math.min(Math.max(share, 0), 1) * 255 + 0.5);

/** CSS gradient of the depth scale. */
export const depthGradient = `linear-gradient(90deg, ${STOPS.map((c) => `rgb(${c})`).join(", ")})`;
