// The kernel's arithmetic in plain typed arrays, for browsers without WebAssembly SIMD: the same steps, slower.
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

const IV = [0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19];
const ORDER = [2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8];
const QUARTERS = [[0, 4, 8, 12], [1, 5, 9, 13], [2, 6, 10, 14], [3, 7, 11, 15], [0, 5, 10, 15], [1, 6, 11, 12], [2, 7, 8, 13], [3, 4, 9, 14]];
const [START, END, PARENT, ROOT] = [1, 2, 4, 8];
const [BLOCK, CHUNK] = [64, 1024];

function compress(chain: ArrayLike<number>, block: Uint32Array, counter: number, length: number, flags: number): Uint32Array {
  const v = new Uint32Array([...Array.from(chain), ...IV.slice(0, 4), counter, Math.floor(counter / 2 ** 32), length, flags]);
  const turn = (x: number, by: number): number => (x >>> by) | (x << (32 - by));
  let words = block;
  for (let round = 0; round < 7; round++) {
    QUARTERS.forEach(([a, b, c, d], place) => {
      for (const [word, first, second] of [[words[2 * place]!, 16, 12], [words[2 * place + 1]!, 8, 7]] as const) {
        v[a!] = v[a!]! + v[b!]! + word;
        v[d!] = turn(v[d!]! ^ v[a!]!, first);
        v[c!] = v[c!]! + v[d!]!;
        v[b!] = turn(v[b!]! ^ v[c!]!, second);
      }
    });
    words = Uint32Array.from(ORDER, (place) => words[place]!);
  }
  return v.slice(0, 8).map((word, place) => word ^ v[place + 8]!);
}

function chunk(data: Uint8Array, number: number, last: number): Uint32Array {
  let chain: ArrayLike<number> = IV;
  let at = 0;
  do {
    const block = new Uint8Array(BLOCK);
    const part = data.subarray(at, at + BLOCK);
    block.set(part);
    const flags = (at ? 0 : START) | (at + BLOCK >= data.length ? END | last : 0);
    chain = compress(chain, new Uint32Array(block.buffer), number, part.length, flags);
    at += BLOCK;
  } while (at < data.length);
  return chain as Uint32Array;
}

export function blake3(data: Uint8Array): Uint8Array {
  const join = (left: Uint32Array, right: Uint32Array, last: number): Uint32Array => compress(IV, new Uint32Array([...left, ...right]), 0, BLOCK, PARENT | last);
  const waiting: Uint32Array[] = [];
  let number = 0;
  for (; data.length > CHUNK; data = data.subarray(CHUNK)) {
    let found = chunk(data.subarray(0, CHUNK), number++, 0);
    for (let whole = number; whole % 2 === 0; whole /= 2) found = join(waiting.pop()!, found, 0);
    waiting.push(found);
  }
  let found = chunk(data, number, waiting.length ? 0 : ROOT);
  while (waiting.length) found = join(waiting.pop()!, found, waiting.length ? 0 : ROOT);
  return new Uint8Array(found.buffer);
}

type Layer = { inputs: number; outputs: number; w: Float32Array; b: Float32Array; at: number };

/** Weights are (output, input) rows, and then the bias, in one buffer of which layers are views. */
function layersOf(shape: Shape, values: Float32Array): Layer[] {
  if (shape.image) throw new Unsupported("this browser is too old for models with convolutions: it has no WebAssembly SIMD");
  let at = 0;
  return shape.widths.slice(1).map((outputs, place) => {
    const inputs = shape.widths[place]!;
    const layer = { inputs, outputs, w: values.subarray(at, at + inputs * outputs), b: values.subarray(at + inputs * outputs, at + (inputs + 1) * outputs), at };
    at += (inputs + 1) * outputs;
    return layer;
  });
}

function forward(layers: Layer[], x: Float32Array): Float32Array[] {
  const found = [x];
  layers.forEach(({ inputs, outputs, w, b }, place) => {
    const from = found[place]!;
    const y = new Float32Array(outputs);
    for (let o = 0; o < outputs; o++) {
      let sum = b[o]!;
      for (let i = 0, at = o * inputs; i < inputs; i++) sum += w[at + i]! * from[i]!;
      y[o] = place < layers.length - 1 ? Math.max(0, sum) : sum;
    }
    found.push(y);
  });
  return found;
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
    const weights = new Float32Array(values);
    const layers = layersOf(shape, weights);
    const gradient = new Float32Array(values.length);
    const velocity = new Float32Array(values.length);
    const result = { loss: 0, hits: 0 };
    let seen = 0;
    batches.forEach((batch, number) => {
      gradient.fill(0);
      const tally = number >= tallied ? result : { loss: 0, hits: 0 };
      for (const row of batch) descend(layers, gradient, rows, row, batch.length, tally);
      for (let i = 0; i < weights.length; i++) {
        const pull = gradient[i]! + step.decay * weights[i]! + step.mu * (weights[i]! - values[i]!);
        velocity[i] = step.momentum * velocity[i]! + pull;
        weights[i] = weights[i]! - step.lr * velocity[i]!;
      }
      seen += number >= tallied ? batch.length : 0;
      report((number + 1) / batches.length, seen ? result.loss / seen : 0);
    });
    return { delta: weights.map((value, place) => value - values[place]!), ...result };
  }

  predict(shape: Shape, values: Float32Array, rows: Rows): Float32Array {
    const layers = layersOf(shape, values);
    const [inputs, outputs] = [shape.widths[0]!, shape.widths.at(-1)!];
    const out = new Float32Array(rows.count * outputs);
    for (let row = 0; row < rows.count; row++) out.set(forward(layers, rows.x.subarray(row * inputs, (row + 1) * inputs)).at(-1)!, row * outputs);
    return out;
  }
}

/** Adds one row's share of the gradient of the batch's mean loss. */
function descend(layers: Layer[], gradient: Float32Array, rows: Rows, row: number, batch: number, tally: { loss: number; hits: number }): void {
  const inputs = layers[0]!.inputs;
  const found = forward(layers, rows.x.subarray(row * inputs, (row + 1) * inputs));
  let d = judge(found.at(-1)!, rows, row, batch, tally);
  for (let place = layers.length - 1; place >= 0; place--) {
    const { inputs, outputs, w, at } = layers[place]!;
    const from = found[place]!;
    const before = new Float32Array(inputs);
    for (let o = 0; o < outputs; o++) {
      for (let i = 0, start = o * inputs; i < inputs; i++) {
        gradient[at + start + i] = gradient[at + start + i]! + d[o]! * from[i]!;
        if (place && from[i]! > 0) before[i] = before[i]! + d[o]! * w[start + i]!;
      }
      gradient[at + inputs * outputs + o] = gradient[at + inputs * outputs + o]! + d[o]!;
    }
    d = before;
  }
}

function judge(y: Float32Array, rows: Rows, row: number, batch: number, tally: { loss: number; hits: number }): Float32Array {
  if (rows.regression) {
    return y.map((value, o) => {
      const error = value - rows.y[row * y.length + o]!;
      tally.loss += (error * error) / y.length;
      return (2 * error) / (batch * y.length);
    });
  }
  const label = rows.y[row]!;
  const best = y.indexOf(Math.max(...y));
  const shares = y.map((value) => Math.exp(value - y[best]!));
  const total = shares.reduce((sum, each) => sum + each, 0);
  tally.loss += Math.log(total) - (y[label]! - y[best]!);
  tally.hits += best === label ? 1 : 0;
  return shares.map((share, o) => (share / total - (o === label ? 1 : 0)) / batch);
}
