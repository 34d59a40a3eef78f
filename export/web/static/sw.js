// Caches the complete page for offline use, and adds the headers that WASM threads need.
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
    event.respondWith(respond(event.request));
});

async function respond(request) {
  const cached = await (await caches.open(BUILD)).match(request, { ignoreSearch: true });
  const response = cached ?? await fetch(request);
  if (response.status === 0 || response.redirected) return response;
  const headers = new Headers(response.headers);
  headers.set("Cross-Origin-Opener-Policy", "same-origin");
  headers.set("Cross-Origin-Embedder-Policy", "require-corp");
  headers.set("Cross-Origin-Resource-Policy", "same-origin");
  return new Response(response.body, { status: response.status, statusText: response.statusText, headers });
}
