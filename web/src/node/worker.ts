// Training happens here, beside the page, which stays smooth.
import { OutOfMemory, type Arithmetic } from "./arithmetic";
import { Kernel } from "./kernel";
import { Plain } from "./plain";
import type { Start, Submission } from "./protocol";
import { carryOut, guess, type Data } from "./work";

export type ToWorker =
  | { kind: "prepare"; wasm?: ArrayBuffer }
  | { kind: "data"; data: Data }
  | { kind: "guess"; id: number; x: Float32Array<ArrayBuffer> }
  | { kind: "work"; start: Start; weights: Uint8Array; batchSize: number };
export type FromWorker =
  | { kind: "ready"; arithmetic: Arithmetic["kind"] }
  | { kind: "guess"; id: number; scores?: Float32Array }
  | { kind: "tick" }
  | { kind: "progress"; start: Start; done: number; loss: number }
  | { kind: "done"; start: Start; message: Submission; blob?: Uint8Array<ArrayBuffer> }
  | { kind: "failed"; start: Start; reason: string };

const PROGRESS_MS = 250;
const TICK_MS = 1000;

let ready: Promise<Arithmetic>;
let data: Data | undefined;
let newest: { start: Start; weights: Uint8Array } | undefined;
const say = (message: FromWorker, transfer: Transferable[] = []): void => postMessage(message, { transfer });

// Browsers slow the clocks of pages that nobody looks at, and not those of workers: the page's heart beats by this one.
setInterval(() => say({ kind: "tick" }), TICK_MS);

onmessage = async ({ data: asked }: MessageEvent<ToWorker>) => {
  if (asked.kind === "prepare") ready = prepared(asked.wasm);
  const arithmetic = await ready;
  switch (asked.kind) {
    case "prepare":
      say({ kind: "ready", arithmetic: arithmetic.kind });
      break;
    case "data":
      data = asked.data;
      break;
    case "guess":
      say({ kind: "guess", id: asked.id, scores: newest && tried(() => guess(arithmetic, newest!.start, newest!.weights, asked.x)) });
      break;
    case "work":
      newest = asked;
      work(arithmetic, asked.start, asked.weights, asked.batchSize);
  }
};

/** Nothing where a row does not fit the newest model. */
function tried<T>(work: () => T): T | undefined {
  try {
    return work();
  } catch (error) {
    console.warn("no guess:", error);
    return undefined;
  }
}

async function prepared(wasm?: ArrayBuffer): Promise<Arithmetic> {
  try {
    return wasm ? await Kernel.of(wasm) : new Plain();
  } catch (error) {
    console.warn("no WebAssembly SIMD here, training in plain JavaScript:", error);
    return new Plain();
  }
}

function work(arithmetic: Arithmetic, start: Start, weights: Uint8Array, batchSize: number): void {
  let due = 0;
  const report = (done: number, loss: number) => {
    if (performance.now() < due) return;
    due = performance.now() + PROGRESS_MS;
    say({ kind: "progress", start, done, loss });
  };
  try {
    if (arithmetic.blake3(weights) !== start.weights) throw new Error("the model was damaged on its way");
    if (!data) throw new Error("there are no rows to train on");
    const { message, blob } = carryOut(start, weights, data, arithmetic, batchSize, report);
    say({ kind: "done", start, message, blob }, blob ? [blob.buffer] : []);
  } catch (error) {
    const told = error instanceof RangeError ? new OutOfMemory() : error; // an array that was too large for this browser
    say({ kind: "failed", start, reason: told instanceof Error ? told.message : String(told) });
  }
}
