// The kernel's arithmetic in plain typed arrays, for browsers without WebAssembly SIMD: the same bits, slower.
import { hex, type Arithmetic, type Report, type Result, type Rows, type Shape, type Step } from "./arithmetic";
import { blake3 } from "./blake3";
import { Convolution, type Seen } from "./convolution";
import { Dense, gated, judge, relu, transposed, Values, type Tally } from "./dense";

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

const MAPS = [32, 64] as const;
const STILL: Step = { lr: 0, momentum: 0, decay: 0, mu: 0 };

function rowOf({ x, count }: Rows, row: number): Float32Array<ArrayBuffer> {
  const size = x.length / count;
  return x.subarray(row * size, (row + 1) * size);
}

/** What a network made of one row: of its convolutions, and of each dense layer, its input first. */
type Given = { seen: Seen[]; dense: Float32Array<ArrayBuffer>[] };

class Network {
  private readonly convolutions: Convolution[] = [];
  private readonly layers: Dense[];
  private readonly own: Float32Array<ArrayBuffer>; // parameters of the dense layers

  constructor(private readonly shape: Shape, step: Step, private readonly params: Float32Array) {
    let at = 0;
    if (shape.image) {
      let [channels, height, width] = shape.image;
      for (const maps of MAPS) {
        const size = (25 * channels + 1) * maps;
        this.convolutions.push(new Convolution(channels, height, width, maps, params.slice(at, (at += size)), step));
        [channels, height, width] = [maps, Math.floor(height / 2), Math.floor(width / 2)];
      }
    }
    this.own = params.slice(at);
    let from = 0;
    this.layers = shape.widths.slice(1).map((outputs, place) => {
      const inputs = shape.widths[place]!;
      return new Dense(inputs, outputs, new Values(this.own.subarray(from, (from += (inputs + 1) * outputs)), step));
    });
  }

  forward(x: Float32Array<ArrayBuffer>): Given {
    const seen: Seen[] = [];
    let image = this.shape.image ? transposed(x, this.shape.image[0]) : x;
    for (const convolution of this.convolutions) {
      seen.push(convolution.look(image));
      image = seen.at(-1)!.pooled;
    }
    const dense = [seen.length ? transposed(image, image.length / MAPS[1]) : x];
    this.layers.forEach((layer, place) => {
      const y = layer.forward(dense[place]!);
      dense.push(place === this.layers.length - 1 ? y : relu(y));
    });
    return { seen, dense };
  }

  /** One step on a batch; `tally` adds up its loss and hits. */
  descend(rows: Rows, batch: Uint32Array, tally: Tally): void {
    const given = Array.from(batch, (row) => this.forward(rowOf(rows, row)));
    let d = given.map(({ dense }, place) => judge(dense.at(-1)!, rows, batch[place]!, batch.length, tally));
    for (let place = this.layers.length - 1; place >= 0; place--) {
      const layer = this.layers[place]!;
      const wanted = place > 0 || this.convolutions.length > 0;
      const before = wanted ? d.map((each) => layer.backward(each)) : [];
      layer.learn(given.map(({ dense }) => dense[place]!), d);
      d = place ? before.map((each, row) => gated(each, given[row]!.dense[place]!)) : before;
    }
    if (this.convolutions.length) this.learn(given.map(({ seen }) => seen), d);
  }

  /** How the parameters have changed. */
  get delta(): Float32Array<ArrayBuffer> {
    const found = new Float32Array(this.params.length);
    let at = 0;
    for (const part of [...this.convolutions.map(({ now }) => now), this.own]) {
      found.set(part, at);
      at += part.length;
    }
    return found.map((value, place) => value - this.params[place]!);
  }

  /** The convolutions' step, from the gradient of what they gave. */
  private learn(seen: Seen[][], d: Float32Array[]): void {
    const [first, second] = this.convolutions as [Convolution, Convolution];
    const late = d.map((each, row) => second.unpool(seen[row]![1]!, transposed(each, MAPS[1])));
    const early = late.map((each, row) => first.unpool(seen[row]![0]!, second.trace(each)));
    second.learn(seen.map((its) => its[1]!), late);
    first.learn(seen.map((its) => its[0]!), early);
  }
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
    const network = new Network(shape, step, values);
    const result = { loss: 0, hits: 0 };
    let seen = 0;
    batches.forEach((batch, number) => {
      network.descend(rows, batch, number >= tallied ? result : { loss: 0, hits: 0 });
      seen += number >= tallied ? batch.length : 0;
      report((number + 1) / batches.length, seen ? result.loss / seen : 0);
    });
    return { delta: network.delta, ...result };
  }

  predict(shape: Shape, values: Float32Array, rows: Rows): Float32Array {
    const network = new Network(shape, STILL, values);
    const outputs = shape.widths.at(-1)!;
    const out = new Float32Array(rows.count * outputs);
    for (let row = 0; row < rows.count; row++) out.set(network.forward(rowOf(rows, row)).dense.at(-1)!, row * outputs);
    return out;
  }
}
