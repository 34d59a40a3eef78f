// Keeps the whole page for use without a network, and adds the headers that WASM threads need where a server lacks them.
const BUILD = "$build", FILES = $files;

self.addEventListener("install", (event) => event.waitUntil((async () => {
  const cache = await caches.open(BUILD);
  await cache.addAll(FILES.map((file) => new Request(file, { cache: "reload" })));
  await self.skipWaiting();
})()));

self.addEventListener("activate", (event) => event.waitUntil((async () => {
  for (const name of await caches.keys()) if (name !== BUILD) await caches.delete(name);
  await self.clients.claim();
})()));

self.addEventListener("fetch", (event) => {
  if (event.request.method === "GET" && new URL(event.request.url).origin === location.origin)
    event.respondWith(answer(event.request));
});

async function answer(request) {
  const held = await (await caches.open(BUILD)).match(request, { ignoreSearch: true });
  const found = held ?? await fetch(request);
  if (found.status === 0 || found.redirected) return found;
  const headers = new Headers(found.headers);
  headers.set("Cross-Origin-Opener-Policy", "same-origin");
  headers.set("Cross-Origin-Embedder-Policy", "require-corp");
  headers.set("Cross-Origin-Resource-Policy", "same-origin");
  return new Response(found.body, { status: found.status, statusText: found.statusText, headers });
}
