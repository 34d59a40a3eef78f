// What sw.js needs of a browser: caches, a network and events of the test. Steps of a test follow.
import { readFileSync } from "node:fs";
const [, , script, content] = process.argv, scope = "http://localhost/app/", report = {};
globalThis.network = Object.fromEntries(Object.entries(JSON.parse(content)).map(([k, v]) => [scope + k, v]));
network[scope] = network[scope + "./"] ?? network[scope + "index.html"];
globalThis.offline = false;
const store = new Map();
globalThis.caches = {
  open: async (name) => { if (!store.has(name)) store.set(name, new Map()); const files = store.get(name); return {
    put: async (url, response) => files.set(String(url), response),
    match: async (url) => files.get(String(url))?.clone() }; },
  keys: async () => [...store.keys()], delete: async (name) => store.delete(name) };
globalThis.fetch = async (request) => {
  const url = (request.url ?? String(request)).split(/[?#]/)[0];
  if (offline) throw new TypeError("no network");
  return url in network ? new Response(network[url]) : new Response("none", { status: 404 });
};
const listeners = {};
globalThis.self = { registration: { scope }, addEventListener: (name, f) => { listeners[name] = f; },
  skipWaiting: async () => {}, clients: { claim: async () => {} } };
const fire = async (name) => { let done; listeners[name]({ waitUntil: (p) => { done = p; } });
  return done.then(() => "ok", (error) => error.message); };
const ask = async (url) => { let answer = null;
  listeners.fetch({ request: new Request(url), respondWith: (p) => { answer = p; } });
  if (answer === null) return "untouched";
  return answer.then(async (r) => [r.status, await r.text(), r.headers.has("Cross-Origin-Embedder-Policy")],
    (error) => error.message); };
(0, eval)(readFileSync(script, "utf8"));
