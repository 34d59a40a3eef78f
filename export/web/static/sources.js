// Sources of frames. Each has a name, draw(context, side), which draws its middle square, and stop().

/** The bundled clip: one picture with all frames, played forwards and backwards. */
export async function clip({ file, frames, columns, side, frames_per_second: rate }) {
  const picture = new Image();
  picture.src = file;
  await picture.decode();
  const begin = performance.now(), round = 2 * frames - 2;
  const source = {
    name: "bundled clip", fixedFrame: null, // for tests
    draw(context, size) {
      const at = Math.floor((performance.now() - begin) / 1000 * rate) % round;
      const i = source.fixedFrame ?? Math.min(at, round - at);
      context.drawImage(picture, (i % columns) * side, Math.floor(i / columns) * side, side, side, 0, 0, size, size);
    },
    stop() {},
  };
  return source;
}

/** The rear camera, if there are two. */
export async function camera() {
  if (!navigator.mediaDevices?.getUserMedia)
    throw new Error("This browser gives no camera here: it needs https or localhost.");
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({
      video: { facingMode: "environment", width: { ideal: 640 }, height: { ideal: 480 } } });
  } catch (error) {
    throw new Error({ NotAllowedError: "The camera was not allowed; allow it in the browser's settings and try again.",
      NotFoundError: "No camera was found.", NotReadableError: "Another program is using the camera." }[error.name]
      ?? `The camera cannot be opened (${error.name}).`);
  }
  const video = element(stream);
  await video.play();
  return moving("camera", video, () => stream.getTracks().forEach((track) => track.stop()));
}

/** A video or photo that the user chose. */
export async function file(chosen) {
  const url = URL.createObjectURL(chosen);
  if (chosen.type.startsWith("image/")) {
    const photo = await createImageBitmap(chosen).catch(() => null);
    URL.revokeObjectURL(url);
    if (!photo) throw new Error(`${chosen.name} is not a complete picture.`);
    return { name: chosen.name, still: true, draw: (context, size) => square(context, photo, photo.width, photo.height, size),
      stop: () => photo.close() };
  }
  const video = element(null, url);
  const playable = await new Promise((resolve) => {
    video.onloadeddata = () => resolve(video.videoWidth > 0);
    video.onerror = () => resolve(false);
  });
  if (!playable) {
    URL.revokeObjectURL(url);
    throw new Error(`${chosen.name} is not a video that this browser plays.`);
  }
  await video.play();
  return moving(chosen.name, video, () => URL.revokeObjectURL(url));
}

function element(stream, url) {
  const video = document.createElement("video");
  Object.assign(video, { muted: true, playsInline: true, loop: true });
  stream ? video.srcObject = stream : video.src = url;
  return video;
}

function moving(name, video, end) {
  return { name, draw: (context, size) => square(context, video, video.videoWidth, video.videoHeight, size),
    stop() { video.pause(); video.removeAttribute("src"); video.srcObject = null; end(); } };
}

function square(context, picture, width, height, size) {
  const side = Math.min(width, height);
  context.drawImage(picture, (width - side) / 2, (height - side) / 2, side, side, 0, 0, size, size);
}
