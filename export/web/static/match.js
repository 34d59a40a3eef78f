// The point of another view that matches: the largest dot product of unit descriptors (infer/pictures.py: match).

/** The descriptor at (x, y) in [0,1], interpolated between cells: a Float32Array of unit length. */
export function describe({ data, dims }, x, y) {
  const [, channels, h, w] = dims, n = h * w;
  const column = clip(x * w - 0.5, 0, w - 1), row = clip(y * h - 0.5, 0, h - 1);
  const c = Math.min(Math.floor(column), w - 2), r = Math.min(Math.floor(row), h - 2);
  const u = column - c, v = row - r, at = r * w + c, out = new Float32Array(channels);
  let square = 0;
  for (let k = 0; k < channels; k++) {
    const i = k * n + at;
    out[k] = (data[i] * (1 - u) + data[i + 1] * u) * (1 - v) + (data[i + w] * (1 - u) + data[i + w + 1] * u) * v;
    square += out[k] * out[k];
  }
  return out.map((value) => value / Math.sqrt(square));
}

/** Where a view matches a descriptor best: {x, y} in [0,1], and likeness, the cosine. */
export function find({ data, dims }, descriptor) {
  const [, channels, h, w] = dims, n = h * w, likeness = new Float32Array(n);
  for (let k = 0; k < channels; k++)
    for (let i = 0; i < n; i++) likeness[i] += descriptor[k] * data[k * n + i];
  let best = 0;
  for (let i = 1; i < n; i++) if (likeness[i] > likeness[best]) best = i;
  const row = Math.floor(best / w), column = best % w;
  let sum = 0, x = 0, y = 0;
  for (let r = Math.max(row - 1, 0); r < Math.min(row + 2, h); r++)
    for (let c = Math.max(column - 1, 0); c < Math.min(column + 2, w); c++) {
      const weight = Math.exp((likeness[r * w + c] - likeness[best]) * 30);
      sum += weight;
      x += weight * (c + 0.5);
      y += weight * (r + 0.5);
    }
  return { x: x / sum / w, y: y / sum / h, likeness: likeness[best] };
}

/** Whether `place`, found in `other`, matches back to (x, y) of `origin`: the point is then in view. */
export function leadsBack(origin, x, y, other, place) {
  const back = find(origin, describe(other, place.x, place.y));
  return Math.hypot(back.x - x, back.y - y) < 0.1;
}

const clip = (value, low, high) => Math.min(Math.max(value, low), high);
