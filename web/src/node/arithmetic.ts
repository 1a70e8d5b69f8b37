// What a node computes with: the WebAssembly kernel, or plain typed arrays where a browser has none.

/** Dense layers of these widths, after the convolutions of the CNN if `image` (channels, height, width) is given. */
export type Shape = { widths: number[]; image?: [number, number, number] };
export type Step = { lr: number; momentum: number; decay: number; mu: number };
/** `x` holds rows one after another; `y` classes, or targets where `regression`. */
export type Rows = { x: Float32Array<ArrayBuffer>; y: Float32Array<ArrayBuffer>; regression: boolean; count: number };
export type Result = { delta: Float32Array<ArrayBuffer>; loss: number; hits: number };
export type Report = (done: number, loss: number) => void;

export interface Arithmetic {
  readonly kind: "simd" | "plain";
  /** The order of n rows in an epoch, as numpy shuffles them. */
  shuffle(seed: bigint, epoch: number, n: number): Uint32Array;
  blake3(data: Uint8Array): string;
  train(shape: Shape, step: Step, values: Float32Array, rows: Rows, batches: Uint32Array[], tallied: number, report: Report): Result;
  /** Logits or targets, row by row. */
  predict(shape: Shape, values: Float32Array, rows: Rows): Float32Array;
}

export class Unsupported extends Error {}

export class OutOfMemory extends Error {
  constructor() {
    super("there is too little memory on this device for the model; close other pages, or let the job use a smaller model or smaller batches");
  }
}

export const MODELS = ["linear", "mlp", "2nn", "cnn"];
const MAX_LAYERS = 16;
const HIDDEN = 512;
const MAPS = 64;

export function shapeOf(model: { name: string; options: Record<string, string> }, input: number[], outputs: number): Shape {
  const inputs = input.reduce((product, each) => product * each, 1);
  const { hidden = "64", activation = "relu", dropout = "0", ...rest } = model.options;
  switch (model.name) {
    case "linear":
      return { widths: [inputs, outputs] };
    case "2nn":
      return { widths: [inputs, 200, 200, outputs] };
    case "cnn":
      if (input.length !== 3) break;
      return { widths: [MAPS * Math.floor(input[1]! / 4) * Math.floor(input[2]! / 4), HIDDEN, outputs], image: input as [number, number, number] };
    case "mlp": {
      const widths = [inputs, ...hidden.split("x").map(Number), outputs];
      if (activation !== "relu" || Number(dropout) || Object.keys(rest).length || widths.length > MAX_LAYERS + 1) break;
      return { widths };
    }
  }
  throw new Unsupported(`this browser cannot train the model “${model.name}” as the job wants it; it has ${MODELS.join(", ")}`);
}

export const hex = (bytes: Uint8Array): string => Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
