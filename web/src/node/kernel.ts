// web/kernel in WebAssembly: the same instructions as in the coordinator's audits, and so the same bits.
import { hex, OutOfMemory, type Arithmetic, type Report, type Result, type Rows, type Shape, type Step } from "./arithmetic";

type Exports = {
  memory: WebAssembly.Memory;
  take(size: number): number;
  free_all(): void;
  train(model: number, step: number, params: number, x: number, classes: number, targets: number, order: number, sizes: number, batches: number, tallied: number, delta: number, tally: number): number;
  predict(model: number, params: number, x: number, count: number, out: number): number;
  shuffle(low: number, high: number, epoch: number, n: number, order: number): void;
  blake3(data: number, size: number, out: number): void;
};

const WIDTHS_AT = 16;
const MODEL_BYTES = WIDTHS_AT + 8 * 17;

export class Kernel implements Arithmetic {
  readonly kind = "simd";
  private report: Report = () => undefined;
  private constructor(private readonly its: Exports) {}

  static async of(wasm: BufferSource): Promise<Kernel> {
    let kernel: Kernel | undefined;
    const host = { report: (done: number, loss: number) => kernel?.report(done, loss) };
    const { instance } = await WebAssembly.instantiate(wasm, { host });
    kernel = new Kernel(instance.exports as unknown as Exports);
    return kernel;
  }

  shuffle(seed: bigint, epoch: number, n: number): Uint32Array {
    return this.using(() => {
      const at = this.take(8 * n);
      this.its.shuffle(Number(seed & 0xffffffffn), Number(seed >> 32n), epoch, n, at);
      return new Uint32Array(this.buffer, at, 2 * n).filter((_, place) => place % 2 === 0);
    });
  }

  blake3(data: Uint8Array): string {
    return this.using(() => {
      const at = this.put(data);
      const out = this.take(32);
      this.its.blake3(at, data.length, out);
      return hex(new Uint8Array(this.buffer, out, 32));
    });
  }

  train(shape: Shape, step: Step, values: Float32Array, rows: Rows, batches: Uint32Array[], tallied: number, report: Report): Result {
    this.report = report;
    return this.using(() => {
      const y = rows.regression ? this.put(rows.y) : this.numbers(rows.y);
      const order = this.numbers(batches.flatMap((batch) => [...batch]));
      const sizes = this.numbers(batches.map((batch) => batch.length));
      const given = [this.model(shape), this.put(new Float32Array([step.lr, step.momentum, step.decay, step.mu])), this.put(values), this.put(rows.x)] as const;
      const delta = this.take(values.byteLength);
      const tally = this.take(16);
      if (!this.its.train(...given, rows.regression ? 0 : y, rows.regression ? y : 0, order, sizes, batches.length, tallied, delta, tally)) throw new OutOfMemory();
      const counted = new DataView(this.buffer, tally, 16);
      return { delta: this.floats(delta, values.length), loss: counted.getFloat64(0, true), hits: Number(counted.getBigInt64(8, true)) };
    });
  }

  predict(shape: Shape, values: Float32Array, rows: Rows): Float32Array {
    return this.using(() => {
      const size = rows.count * shape.widths.at(-1)!;
      const given = [this.model(shape), this.put(values), this.put(rows.x)] as const;
      const out = this.take(4 * size);
      if (!this.its.predict(...given, rows.count, out)) throw new OutOfMemory();
      return this.floats(out, size);
    });
  }

  private get buffer(): ArrayBuffer {
    return this.its.memory.buffer; // anew each time: it is another one once the memory has grown
  }

  private using<T>(work: () => T): T {
    try {
      return work();
    } finally {
      this.its.free_all();
    }
  }

  private take(size: number): number {
    const at = this.its.take(size) >>> 0;
    if (!at) throw new OutOfMemory();
    return at;
  }

  private put(data: Uint8Array | Float32Array): number {
    const at = this.take(data.byteLength);
    new Uint8Array(this.buffer, at, data.byteLength).set(new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
    return at;
  }

  private numbers(values: ArrayLike<number>): number {
    const at = this.take(8 * values.length);
    const words = new Int32Array(this.buffer, at, 2 * values.length);
    for (let i = 0; i < values.length; i++) words[2 * i] = values[i]!;
    return at;
  }

  private model(shape: Shape): number {
    const view = new DataView(new ArrayBuffer(MODEL_BYTES));
    (shape.image ?? [0, 0, 0]).forEach((value, place) => view.setInt32(4 * place, value, true));
    view.setInt32(12, shape.widths.length - 1, true);
    shape.widths.forEach((width, place) => view.setBigInt64(WIDTHS_AT + 8 * place, BigInt(width), true));
    return this.put(new Uint8Array(view.buffer));
  }

  private floats(at: number, count: number): Float32Array<ArrayBuffer> {
    return new Float32Array(this.buffer, at, count).slice();
  }
}
