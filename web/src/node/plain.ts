// The kernel's arithmetic in plain typed arrays, for browsers without WebAssembly SIMD: the same bits, slower.
import { blake3 } from "./blake3";
import { hex, Unsupported, type Arithmetic, type Report, type Result, type Rows, type Shape, type Step } from "./arithmetic";

const WORD = 0xffffffffn;
const WIDE = (1n << 128n) - 1n;
const FACTOR = 0x2360ed051fc65da44385df649fccf645n;

/** PCG64 seeded by SeedSequence([seed, epoch]), as in web/kernel/shuffle.c. */
function* words(seed: bigint, epoch: number): Generator<number, never> {
  const entropy = [...(seed >> 32n ? [seed & WORD, seed >> 32n] : [seed]), BigInt(epoch), 0n, 0n].slice(0, 4);
  let constant = 0x43b0d7e5;
  const stir = (value: number, factor: number): number => {
    value ^= constant;
    constant = Math.imul(constant, factor);
    value = Math.imul(value, constant);
    return (value ^ (value >>> 16)) >>> 0;
  };
  const mix = (a: number, b: number): number => {
    const found = (Math.imul(a, 0xca01f9dd) - Math.imul(b, 0x4973f715)) | 0;
    return (found ^ (found >>> 16)) >>> 0;
  };
  const pool = entropy.map((word) => stir(Number(word), 0x931e8875));
  for (let from = 0; from < 4; from++) for (let to = 0; to < 4; to++) if (from !== to) pool[to] = mix(pool[to]!, stir(pool[from]!, 0x931e8875));
  constant = 0x8b51f9dd;
  const drawn = Array.from({ length: 8 }, (_, place) => BigInt(stir(pool[place % 4]!, 0x58f38ded)));
  const wide = (place: number): bigint => (drawn[place + 1]! << 96n) | (drawn[place]! << 64n) | (drawn[place + 3]! << 32n) | drawn[place + 2]!;
  const increment = ((wide(4) << 1n) | 1n) & WIDE;
  const advance = (state: bigint): bigint => (state * FACTOR + increment) & WIDE;
  let state = advance((increment + wide(0)) & WIDE);
  for (;;) {
    state = advance(state);
    const mixed = (state >> 64n) ^ (state & ((1n << 64n) - 1n));
    const turn = state >> 122n;
    const turned = ((mixed >> turn) | (mixed << (64n - turn))) & ((1n << 64n) - 1n);
    yield Number(turned & WORD);
    yield Number(turned >> 32n);
  }
}

type Layer = { inputs: number; outputs: number; from: number; to: number };

/** Where layers lie in the parameters: weights are (output, input) rows, and then comes the bias. */
function layersOf(shape: Shape): Layer[] {
  if (shape.image) throw new Unsupported("this browser is too old for models with convolutions: it has no WebAssembly SIMD");
  let from = 0;
  return shape.widths.slice(1).map((outputs, place) => {
    const inputs = shape.widths[place]!;
    const layer = { inputs, outputs, from, to: from + (inputs + 1) * outputs };
    from = layer.to;
    return layer;
  });
}

// The kernel's sums are taken in the same order here, and rounded to 32 bits after each operation: so the bits are the
// same (sim/engines/dense.h), and audits cannot tell the two apart.
const f32 = Math.fround;
const word = new Int32Array(1);
const float = new Float32Array(word.buffer);

function scaled(value: number, exponent: number): number {
  word[0] = (exponent + 127) << 23;
  return f32(value * float[0]!);
}

const series = (x: number, ...factors: number[]): number => factors.reduce((sum, factor) => f32(f32(sum * x) + f32(factor)));

/** As in web/kernel/libc.c. */
function exp(x: number): number {
  if (Number.isNaN(x)) return x;
  if (x > f32(88.72284)) return Infinity;
  if (x < f32(-87.33655)) return 0;
  const n = Math.floor(f32(f32(x * f32(1.44269504)) + 0.5));
  const r = f32(f32(x - f32(n * 0.693359375)) + f32(n * f32(2.1219444e-4)));
  const p = series(r, f32(1.98756915e-4), 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1);
  const y = f32(f32(f32(f32(p * r) * r) + r) + 1);
  const half = Math.trunc(n / 2);
  return scaled(scaled(y, half), n - half);
}

function log(x: number): number {
  if (!(x > 0)) return x === 0 ? -Infinity : NaN;
  if (x === Infinity) return x;
  const subnormal = x < f32(1.17549435e-38);
  float[0] = subnormal ? x * 8388608 : x;
  let e = (word[0]! >>> 23) - 126 - (subnormal ? 23 : 0);
  word[0] = (word[0]! & 0x7fffff) | 0x3f000000; // from 0.5 to 1
  let f = float[0]!;
  if (f < f32(0.70710678)) {
    e -= 1;
    f = f32(f + f);
  }
  f = f32(f - 1);
  const z = f32(f * f);
  const p = series(f, f32(7.0376836292e-2), -1.151461031e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1, -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1);
  const y = f32(f32(f32(f32(f * z) * p) - f32(f32(2.1219444e-4) * e)) - f32(0.5 * z));
  return f32(f32(f + y) + f32(0.693359375 * e));
}

/** What each layer gives for one row, the row itself first. */
function forward(layers: Layer[], weights: Float32Array, x: Float32Array): Float32Array[] {
  const found = [x];
  layers.forEach(({ inputs, outputs, from }, place) => {
    const given = found[place]!;
    const y = new Float32Array(outputs);
    const last = place === layers.length - 1;
    for (let o = 0; o < outputs; o++) {
      let sum = weights[from + inputs * outputs + o]!;
      for (let i = 0, at = from + o * inputs; i < inputs; i++) sum = f32(sum + f32(given[i]! * weights[at + i]!));
      y[o] = last || sum > 0 ? sum : 0;
    }
    found.push(y);
  });
  return found;
}

/** The gradient with respect to what a layer was given, which comes through its ReLU. */
function backward({ inputs, outputs, from }: Layer, weights: Float32Array, given: Float32Array, d: Float32Array): Float32Array {
  const before = new Float32Array(inputs);
  for (let o = 0; o < outputs; o++) for (let i = 0, at = from + o * inputs; i < inputs; i++) before[i] = before[i]! + f32(d[o]! * weights[at + i]!);
  return before.map((value, i) => (given[i]! > 0 ? value : 0));
}

/** One training: the weights as they are, where they started, and how they move. */
class Descent {
  readonly weights: Float32Array<ArrayBuffer>;
  private readonly velocity?: Float32Array;
  private readonly step: Step;

  constructor(private readonly layers: Layer[], step: Step, private readonly start: Float32Array) {
    this.step = { lr: f32(step.lr), momentum: f32(step.momentum), decay: f32(step.decay), mu: f32(step.mu) };
    this.weights = new Float32Array(start);
    if (this.step.momentum) this.velocity = new Float32Array(start.length);
  }

  /** On one batch; `tally` adds up its loss and hits. */
  descend(rows: Rows, batch: Uint32Array, tally: Tally): void {
    const inputs = this.layers[0]!.inputs;
    const given = Array.from(batch, (row) => forward(this.layers, this.weights, rows.x.subarray(row * inputs, (row + 1) * inputs)));
    let d = given.map((its, place) => judge(its.at(-1)!, rows, batch[place]!, batch.length, tally));
    for (let place = this.layers.length - 1; place >= 0; place--) {
      const layer = this.layers[place]!;
      const before = place ? d.map((each, row) => backward(layer, this.weights, given[row]![place]!, each)) : [];
      this.move(layer, given.map((its) => its[place]!), d);
      d = before;
    }
  }

  /** Move a layer by the gradients d, row by row, of what it gave for x. */
  private move({ inputs, outputs, from, to }: Layer, x: Float32Array[], d: Float32Array[]): void {
    const { weights, velocity, start } = this;
    const { lr, momentum, decay, mu } = this.step;
    if (velocity || mu || decay)
      for (let i = from; i < to; i++) {
        const pull = f32(f32(decay * weights[i]!) + (mu ? f32(mu * f32(weights[i]! - start[i]!)) : 0));
        if (velocity) velocity[i] = f32(momentum * velocity[i]!) + pull;
        else weights[i] = weights[i]! - f32(lr * pull);
      }
    const target = velocity ?? weights;
    d.forEach((gradient, row) => {
      const its = x[row]!;
      for (let o = 0; o < outputs; o++) {
        const by = velocity ? gradient[o]! : f32(gradient[o]! * -lr);
        for (let i = 0, at = from + o * inputs; i < inputs; i++) target[at + i] = target[at + i]! + f32(its[i]! * by);
        const bias = from + inputs * outputs + o;
        target[bias] = target[bias]! + by;
      }
    });
    if (velocity) for (let i = from; i < to; i++) weights[i] = weights[i]! - f32(lr * velocity[i]!);
  }
}

type Tally = { loss: number; hits: number };

/** The gradient of the batch's mean loss with respect to what the network gave for one of its rows. */
function judge(y: Float32Array, rows: Rows, row: number, batch: number, tally: Tally): Float32Array {
  if (rows.regression)
    return y.map((value, o) => {
      const error = f32(value - rows.y[row * y.length + o]!);
      tally.loss += f32(error * error) / y.length;
      return f32(2 * error) / (batch * y.length);
    });
  const label = rows.y[row]!;
  const best = y.reduce((found, value, o) => (value > y[found]! ? o : found), 0);
  const shares = y.map((value) => exp(f32(value - y[best]!)));
  const total = shares.reduce((sum, each) => f32(sum + each), 0);
  tally.loss += f32(log(total) - f32(y[label]! - y[best]!));
  tally.hits += best === label ? 1 : 0;
  return shares.map((share, o) => f32(f32(share / total) - (o === label ? 1 : 0)) / batch);
}

export class Plain implements Arithmetic {
  readonly kind = "plain";

  shuffle(seed: bigint, epoch: number, n: number): Uint32Array {
    const order = Uint32Array.from({ length: n }, (_, place) => place);
    const source = words(seed, epoch);
    for (let i = n - 1; i > 0; i--) {
      const mask = 0xffffffff >>> Math.clz32(i);
      let j: number;
      do j = (source.next().value & mask) >>> 0;
      while (j > i);
      [order[i], order[j]] = [order[j]!, order[i]!];
    }
    return order;
  }

  blake3(data: Uint8Array): string {
    return hex(blake3(data));
  }

  train(shape: Shape, step: Step, values: Float32Array, rows: Rows, batches: Uint32Array[], tallied: number, report: Report): Result {
    const descent = new Descent(layersOf(shape), step, values);
    const result = { loss: 0, hits: 0 };
    let seen = 0;
    batches.forEach((batch, number) => {
      descent.descend(rows, batch, number >= tallied ? result : { loss: 0, hits: 0 });
      seen += number >= tallied ? batch.length : 0;
      report((number + 1) / batches.length, seen ? result.loss / seen : 0);
    });
    return { delta: descent.weights.map((value, place) => value - values[place]!), ...result };
  }

  predict(shape: Shape, values: Float32Array, rows: Rows): Float32Array {
    const layers = layersOf(shape);
    const [inputs, outputs] = [shape.widths[0]!, shape.widths.at(-1)!];
    const out = new Float32Array(rows.count * outputs);
    for (let row = 0; row < rows.count; row++) out.set(forward(layers, values, rows.x.subarray(row * inputs, (row + 1) * inputs)).at(-1)!, row * outputs);
    return out;
  }
}
