// Steps a second of the browser node's arithmetic in this JavaScript engine: for bench/browser.py.
import { readFileSync } from "node:fs";
import type { Arithmetic, Rows, Shape } from "../src/node/arithmetic";
import { Kernel } from "../src/node/kernel";
import { Plain } from "../src/node/plain";
import { parameters } from "../src/node/work";

const BATCH = 32;
const MODELS: Record<string, Shape> = {
  "2nn": { widths: [784, 200, 200, 10] },
  cnn: { widths: [3136, 512, 10], image: [1, 28, 28] },
};

function measure(arithmetic: Arithmetic, shape: Shape, steps: number): number {
  const random = (size: number, scale: number) => Float32Array.from({ length: size }, () => (Math.random() - 0.5) * scale);
  const rows: Rows = { x: random(BATCH * 784, 1), y: Float32Array.from({ length: BATCH }, (_, row) => row % 10), regression: false, count: BATCH };
  const batch = Uint32Array.from({ length: BATCH }, (_, row) => row);
  const values = random(parameters(shape), 0.1);
  const train = (count: number) => arithmetic.train(shape, { lr: 0.01, momentum: 0, decay: 0, mu: 0 }, values, rows, Array<Uint32Array>(count).fill(batch), 0, () => undefined);
  train(2);
  const began = performance.now();
  train(steps);
  return (1000 * steps) / (performance.now() - began);
}

const [wasm, scale = "1"] = process.argv.slice(2);
const kernel = await Kernel.of(readFileSync(wasm!));
const found: Record<string, number> = {};
for (const [name, shape] of Object.entries(MODELS)) found[`${name}, kernel`] = measure(kernel, shape, Math.ceil((name === "cnn" ? 20 : 400) * Number(scale)));
for (const [name, shape] of Object.entries(MODELS)) found[`${name}, plain JavaScript`] = measure(new Plain(), shape, Math.ceil((name === "cnn" ? 2 : 30) * Number(scale)));
console.log(JSON.stringify(found));
