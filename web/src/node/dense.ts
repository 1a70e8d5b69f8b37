// Dense layers in plain typed arrays. The kernel's sums are taken in the same order here, and rounded to 32 bits after each
// operation: so the bits are the same (sim/engines/dense.h), and audits cannot tell the two apart.
import type { Rows, Step } from "./arithmetic";

const f32 = Math.fround;
const word = new Int32Array(1);
const float = new Float32Array(word.buffer);

/** Parameters on their way down: as they are, and where a step needs it, where they started, and how they move. */
export class Values {
  private readonly start?: Float32Array;
  private readonly velocity?: Float32Array;
  private readonly step: Step;

  constructor(readonly now: Float32Array<ArrayBuffer>, step: Step) {
    this.step = { lr: f32(step.lr), momentum: f32(step.momentum), decay: f32(step.decay), mu: f32(step.mu) };
    if (this.step.mu) this.start = now.slice();
    if (this.step.momentum) this.velocity = new Float32Array(now.length);
  }

  /** What gradients are added to, after `prepare` and before `follow`. */
  get target(): Float32Array {
    return this.velocity ?? this.now;
  }

  /** Gradients as they are added to `target`. */
  steps(d: Float32Array<ArrayBuffer>): Float32Array<ArrayBuffer> {
    return this.velocity ? d : d.map((gradient) => gradient * -this.step.lr);
  }

  prepare(): void {
    const { now, velocity, start } = this;
    const { lr, momentum, decay, mu } = this.step;
    if (!velocity && !mu && !decay) return;
    for (let i = 0; i < now.length; i++) {
      const pull = f32(f32(decay * now[i]!) + (mu ? f32(mu * f32(now[i]! - start![i]!)) : 0));
      if (velocity) velocity[i] = f32(momentum * velocity[i]!) + pull;
      else now[i] = now[i]! - f32(lr * pull);
    }
  }

  follow(): void {
    const { now, velocity } = this;
    if (velocity) for (let i = 0; i < now.length; i++) now[i] = now[i]! - f32(this.step.lr * velocity[i]!);
  }
}

/** One layer; its values are (output, input) rows of weights, and then the bias, as in the parameters. */
export class Dense {
  constructor(readonly inputs: number, readonly outputs: number, private readonly values: Values) {}

  forward(x: Float32Array): Float32Array<ArrayBuffer> {
    const { inputs, outputs } = this;
    const weights = this.values.now;
    const y = new Float32Array(outputs);
    for (let o = 0; o < outputs; o++) {
      let sum = weights[inputs * outputs + o]!;
      for (let i = 0, at = o * inputs; i < inputs; i++) sum = f32(sum + f32(x[i]! * weights[at + i]!));
      y[o] = sum;
    }
    return y;
  }

  /** The gradient with respect to what the layer was given, from that of what it gave. */
  backward(d: Float32Array): Float32Array<ArrayBuffer> {
    const { inputs, outputs } = this;
    const weights = this.values.now;
    const before = new Float32Array(inputs);
    for (let o = 0; o < outputs; o++) for (let i = 0, at = o * inputs; i < inputs; i++) before[i] = before[i]! + f32(d[o]! * weights[at + i]!);
    return before;
  }

  /** Move by the gradients d, row by row, of what the layer gave for x. */
  learn(x: Float32Array[], d: Float32Array<ArrayBuffer>[]): void {
    const { inputs, outputs, values } = this;
    values.prepare();
    const { target } = values;
    d.forEach((gradient, row) => {
      const its = x[row]!;
      const steps = values.steps(gradient);
      for (let o = 0; o < outputs; o++) {
        const by = steps[o]!;
        for (let i = 0, at = o * inputs; i < inputs; i++) target[at + i] = target[at + i]! + f32(its[i]! * by);
        const bias = inputs * outputs + o;
        target[bias] = target[bias]! + by;
      }
    });
    values.follow();
  }
}

export const relu = (y: Float32Array<ArrayBuffer>): Float32Array<ArrayBuffer> => y.map((value) => (value > 0 ? value : 0));

/** The gradient that comes through a ReLU which gave y. */
export const gated = (d: Float32Array<ArrayBuffer>, y: Float32Array): Float32Array<ArrayBuffer> => d.map((value, i) => (y[i]! > 0 ? value : 0));

/** A table's columns as rows. */
export function transposed(values: Float32Array, rows: number): Float32Array<ArrayBuffer> {
  const columns = values.length / rows;
  return Float32Array.from(values, (_, place) => values[(place % rows) * columns + Math.floor(place / rows)]!);
}

// -- losses ------------------------------------------------------------------------------------------------

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

export type Tally = { loss: number; hits: number };

/** The gradient of the batch's mean loss with respect to what the network gave for one of its rows. */
export function judge(y: Float32Array<ArrayBuffer>, rows: Rows, row: number, batch: number, tally: Tally): Float32Array<ArrayBuffer> {
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
