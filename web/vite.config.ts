import react from "@vitejs/plugin-react";
import { defineConfig } from "vite";

const coordinator = "http://127.0.0.1:8000";

// The output is part of the Python package, so that its users need no Node.
export default defineConfig({
  plugins: [react()],
  build: {
    outDir: "../src/tutti/apps/web",
    emptyOutDir: true,
    target: "es2022",
    modulePreload: { polyfill: false },
    rolldownOptions: { input: ["index.html", "node.html"] },
  },
  worker: { format: "es" },
  server: {
    proxy: Object.fromEntries(
      ["/api", "/auth", "/node-kernel.wasm", "/openapi.json", "/metrics", "/docs"].map((path) => [path, coordinator]).concat([["/ws", "ws://127.0.0.1:8000"]]),
    ),
  },
});
