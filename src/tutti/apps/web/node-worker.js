// The service worker: keeps the page's own files, so that an installed node opens without a connection and says so.
const CACHE = "tutti-node";
const PAGE = "/node";
const KEPT = /^\/(node|node-kernel\.wasm|favicon\.svg|icon-\d+\.png|node\.webmanifest|assets\/.+)$/;
const ALWAYS = [PAGE, "/node-kernel.wasm", "/favicon.svg", "/node.webmanifest"];

self.addEventListener("install", (event) => event.waitUntil(keepAll().then(() => self.skipWaiting())));
self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));
self.addEventListener("fetch", (event) => {
  const { pathname, origin } = new URL(event.request.url);
  if (event.request.method !== "GET" || origin !== self.location.origin || !KEPT.test(pathname)) return;
  event.respondWith(
    fetch(event.request)
      .then((response) => {
        if (response.ok && pathname === PAGE) event.waitUntil(keepAll()); // perhaps of a newer version
        return response;
      })
      .catch(async (error) => (await caches.match(pathname)) ?? Promise.reject(error)),
  );
});

/** Keep the page and every file that it, or one of its scripts, names; forget those of versions before. */
async function keepAll() {
  const cache = await caches.open(CACHE);
  const wanted = new Set(ALWAYS);
  for (const path of wanted) {
    const old = path.startsWith("/assets/") ? await cache.match(path) : undefined; // their names change with their content
    const response = old ?? (await fetch(path, { cache: "no-cache" }));
    if (!response.ok) throw new Error(`${path}: status ${response.status}`);
    const text = path === PAGE || path.endsWith(".js") ? await response.clone().text() : "";
    for (const [name] of text.matchAll(/[\w-]+-[\w-]{8}\.(?:js|css)\b/g)) wanted.add(`/assets/${name}`);
    if (!old) await cache.put(path, response);
  }
  for (const { url } of await cache.keys()) if (!wanted.has(new URL(url).pathname)) await cache.delete(url);
}
