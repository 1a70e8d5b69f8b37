// The convolutional half of the CNN in plain typed arrays, with the bits of web/kernel/convolution.h: 5x5 convolutions that
// keep the size, ReLU, 2x2 maxima. An image lies with its channels last. Zeros, which are most of an image and of its
// gradient, are left out where they would be added.
import type { Step } from "./arithmetic";
import { transposed, Values } from "./dense";

const f32 = Math.fround;
const SIDE = 5;
const AROUND = 2;
const CELLS = SIDE * SIDE;

/** What a convolution was given, and made of it: before and after the maxima, and which pixel each of these comes from. */
export type Seen = { image: Float32Array; y: Float32Array; pooled: Float32Array<ArrayBuffer>; winners: Int32Array };

export class Convolution {
  /** Weights are (row, column, channel, map) here, and then come the biases. */
  private readonly values: Values;
  private readonly inputs: number;
  private readonly pixels: number;
  private readonly work: Float32Array<ArrayBuffer>;

  /** `params` are (map, channel, row, column), and then the biases. */
  constructor(private readonly channels: number, private readonly height: number, private readonly width: number, private readonly maps: number, private readonly params: Float32Array, step: Step) {
    this.inputs = CELLS * channels;
    this.pixels = height * width;
    this.work = new Float32Array(this.pixels * this.inputs);
    this.values = new Values(params.map((_, at) => params[this.home(at)]!), step);
  }

  look(image: Float32Array): Seen {
    const { inputs, maps, pixels, work } = this;
    const weights = this.values.now;
    this.patches(image);
    const y = new Float32Array(pixels * maps);
    for (let p = 0; p < pixels; p++) {
      const row = y.subarray(p * maps, (p + 1) * maps);
      for (let o = 0; o < maps; o++) row[o] = weights[inputs * maps + o]!;
      for (let i = 0, at = 0; i < inputs; i++, at += maps) {
        const x = work[p * inputs + i]!;
        if (x === 0) continue;
        for (let o = 0; o < maps; o++) row[o] = row[o]! + f32(x * weights[at + o]!);
      }
      for (let o = 0; o < maps; o++) row[o] = row[o]! > 0 ? row[o]! : 0;
    }
    return { image, y, ...this.maxima(y) };
  }

  /** The gradient of the pixels before ReLU, from that of their maxima. */
  unpool({ y, winners }: Seen, d: Float32Array): Float32Array<ArrayBuffer> {
    const found = new Float32Array(y.length);
    winners.forEach((from, place) => {
      if (y[from]! > 0) found[from] = d[place]!;
    });
    return found;
  }

  /** The gradient of the image, from that of its pixels before ReLU. */
  trace(d: Float32Array): Float32Array {
    const { channels, inputs, maps, pixels, work } = this;
    const weights = this.values.now;
    const back = transposed(weights.subarray(0, inputs * maps), inputs);
    work.fill(0);
    for (let p = 0; p < pixels; p++) {
      const patch = work.subarray(p * inputs, (p + 1) * inputs);
      for (let o = 0, at = 0; o < maps; o++, at += inputs) {
        const by = d[p * maps + o]!;
        if (by === 0) continue;
        for (let i = 0; i < inputs; i++) patch[i] = patch[i]! + f32(by * back[at + i]!);
      }
    }
    const image = new Float32Array(pixels * channels);
    this.each((from, to) => {
      for (let k = 0; k < channels; k++) image[to + k] = image[to + k]! + work[from + k]!;
    });
    return image;
  }

  /** One step of descent by the gradients d of what was seen. */
  learn(seen: Seen[], d: Float32Array<ArrayBuffer>[]): void {
    const { inputs, maps, pixels, values, work } = this;
    values.prepare();
    const { target } = values;
    seen.forEach(({ image }, row) => {
      this.patches(image);
      const steps = values.steps(d[row]!);
      for (let p = 0; p < pixels; p++) {
        const by = steps.subarray(p * maps, (p + 1) * maps);
        const some = Uint32Array.from(by.keys()).filter((o) => by[o] !== 0);
        for (let i = 0, at = 0; i < inputs; i++, at += maps) {
          const x = work[p * inputs + i]!;
          if (x === 0) continue;
          for (const o of some) target[at + o] = target[at + o]! + f32(x * by[o]!);
        }
        for (const o of some) target[inputs * maps + o] = target[inputs * maps + o]! + by[o]!;
      }
    });
    values.follow();
  }

  /** The parameters as they are now. */
  get now(): Float32Array {
    const found = new Float32Array(this.params.length);
    this.values.now.forEach((value, at) => (found[this.home(at)] = value));
    return found;
  }

  /** Where among the parameters a value is from. */
  private home(at: number): number {
    const { channels, inputs, maps } = this;
    if (at >= inputs * maps) return at;
    const [map, input] = [at % maps, Math.floor(at / maps)];
    return (map * channels + (input % channels)) * CELLS + Math.floor(input / channels);
  }

  /** Every pixel's patch of an image, to `work`; zero beyond the edges. */
  private patches(image: Float32Array): void {
    const { channels, work } = this;
    work.fill(0);
    this.each((to, from) => {
      for (let k = 0; k < channels; k++) work[to + k] = image[from + k]!;
    });
  }

  /** Where in the patches each cell lies, and where in the image, if it is not beyond the edges. */
  private each(visit: (cell: number, pixel: number) => void): void {
    const { channels, height, width } = this;
    for (let y = 0, cell = 0; y < height; y++)
      for (let x = 0; x < width; x++)
        for (let dy = -AROUND; dy <= AROUND; dy++)
          for (let dx = -AROUND; dx <= AROUND; dx++, cell += channels)
            if (y + dy >= 0 && y + dy < height && x + dx >= 0 && x + dx < width) visit(cell, ((y + dy) * width + x + dx) * channels);
  }

  private maxima(y: Float32Array): { pooled: Float32Array<ArrayBuffer>; winners: Int32Array } {
    const { height, width, maps } = this;
    const size = Math.floor(height / 2) * Math.floor(width / 2) * maps;
    const [pooled, winners] = [new Float32Array(size), new Int32Array(size)];
    let place = 0;
    for (let top = 0; top + 1 < height; top += 2)
      for (let left = 0; left + 1 < width; left += 2)
        for (let o = 0; o < maps; o++, place++) {
          let best = (top * width + left) * maps + o;
          for (let corner = 1; corner < 4; corner++) {
            const at = ((top + (corner >> 1)) * width + left + (corner & 1)) * maps + o;
            if (y[at]! > y[best]!) best = at;
          }
          pooled[place] = y[best]!;
          winners[place] = best;
        }
    return { pooled, winners };
  }
}
