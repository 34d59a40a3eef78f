// Keeps this page for use without a network, and adds the headers that WASM threads need.
// FILES: the SHA-256 of each file, unpacked if it is gzip. Anything else goes to the network untouched.
const BUILD = "$build", FILES = $files;
const SCOPE = self.registration.scope, PREFIX = "vega3d-edge " + SCOPE + " ", CACHE = PREFIX + BUILD;
const ISOLATION = { "Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp",
  "Cross-Origin-Resource-Policy": "same-origin" };

/** All files or none: a deployment that is not complete yet is not installed. */
async function install() {
  const fetched = await Promise.all(Object.keys(FILES).map(async (name) => {
    const response = await fetch(new Request(new URL(name, SCOPE), { cache: "reload" }));
    const ours = response.ok && await verified(name, response);
    if (!ours) throw new Error(name + " is not of build " + BUILD + " (" + response.status + "): not installed");
    return [name, ours];
  }));
  const cache = await caches.open(CACHE);
  await Promise.all(fetched.map(([name, response]) => cache.put(new URL(name, SCOPE), response)));
  await self.skipWaiting();
}

/** Deletes earlier builds of this page; the caches of others on this origin stay. */
async function activate() {
  for (const name of await caches.keys())
    if (name.startsWith(PREFIX) && name !== CACHE) await caches.delete(name);
  await self.clients.claim();
}

/** The network's answer; the kept file where the network fails or serves this build with one file changed. */
async function respond(request, name) {
  let response;
  try {
    response = await fetch(request);
  } catch (error) {
    const kept = await keptFile(name);
    if (kept) return kept;
    throw error;
  }
  return (response.ok && await verified(name, response.clone()))
    || (await servesThisBuild() && await keptFile(name)) || response;
}

/** Whether this address still serves this build: not a later one, and not another project on the same port. */
async function servesThisBuild() {
  try {
    const response = await fetch(new Request(new URL("page.json", SCOPE), { cache: "no-cache" }));
    return response.ok && await verified("page.json", response) !== null;
  } catch {
    return false;
  }
}

async function keptFile(name) {
  const response = await (await caches.open(CACHE)).match(new URL(name, SCOPE));
  return response && await verified(name, response);
}

/** The response with the headers of isolation if its content is the file of this build, else null. */
async function verified(name, response) {
  const content = await response.arrayBuffer();
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", await unpacked(content)));
  if (Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("") !== FILES[name]) return null;
  const headers = new Headers(response.headers);
  for (const sent of ["Content-Encoding", "Content-Length"]) headers.delete(sent);
  for (const [key, value] of Object.entries(ISOLATION)) headers.set(key, value);
  return new Response(content, { headers });
}

function unpacked(content) {
  const [a, b] = new Uint8Array(content.slice(0, 2));
  if (a !== 0x1f || b !== 0x8b) return content;
  return new Response(new Blob([content]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
}

self.addEventListener("install", (event) => event.waitUntil(install()));
self.addEventListener("activate", (event) => event.waitUntil(activate()));
self.addEventListener("fetch", (event) => {
  const { url, method, headers } = event.request, [address] = url.split(/[?#]/);
  const name = address.startsWith(SCOPE) ? address.slice(SCOPE.length) || "./" : "";
  if (method === "GET" && !headers.has("range") && Object.hasOwn(FILES, name))
    event.respondWith(respond(event.request, name));
});
