// The service worker: keeps the page's own files, so that an installed node opens without a connection and says so.
const CACHE = "tutti-node";
const KEPT = /^\/(node|node-kernel\.wasm|favicon\.svg|node\.webmanifest|assets\/.+)$/;

self.addEventListener("install", (event) => event.waitUntil(self.skipWaiting()));
self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));
self.addEventListener("fetch", (event) => {
  const { pathname, origin } = new URL(event.request.url);
  if (event.request.method !== "GET" || origin !== self.location.origin || !KEPT.test(pathname)) return;
  event.respondWith(
    fetch(event.request)
      .then((response) => {
        if (response.ok) {
          const copy = response.clone();
          event.waitUntil(caches.open(CACHE).then((cache) => cache.put(pathname, copy)));
        }
        return response;
      })
      .catch(async (error) => (await caches.match(pathname)) ?? Promise.reject(error)),
  );
});
