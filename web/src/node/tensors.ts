// Models as safetensors files of float32, as the coordinator writes them (wire/tensors.py).

export type Entry = { name: string; shape: number[] };
/** All values in one buffer, entry after entry; `notes` is what the file says of itself, and goes back as it came. */
export type Tensors = { entries: Entry[]; values: Float32Array<ArrayBuffer>; notes: Record<string, string> };

const ALIGNMENT = 64;
const size = (shape: number[]): number => shape.reduce((product, each) => product * each, 1);

export function decode(file: Uint8Array): Tensors {
  const length = Number(new DataView(file.buffer, file.byteOffset).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(file.subarray(8, 8 + length))) as Record<string, unknown>;
  const { __metadata__: notes = {}, ...tensors } = header as { __metadata__?: Record<string, string> } & Record<string, { dtype: string; shape: number[]; data_offsets: [number, number] }>;
  const placed = Object.entries(tensors as Record<string, { dtype: string; shape: number[]; data_offsets: [number, number] }>).sort(([, a], [, b]) => a.data_offsets[0] - b.data_offsets[0]);
  let end = 0;
  for (const [name, { dtype, shape, data_offsets: [from, to] }] of placed) {
    if (dtype !== "F32" || from !== end || to - from !== 4 * size(shape)) throw new Error(`the model's file is damaged at ${name}`);
    end = to;
  }
  const body = file.slice(8 + length, 8 + length + end);
  if (body.byteLength !== end) throw new Error("the model's file is cut off");
  return { entries: placed.map(([name, { shape }]) => ({ name, shape })), values: new Float32Array(body.buffer), notes };
}

export function encode({ entries, values, notes }: Tensors): Uint8Array<ArrayBuffer> {
  const header: Record<string, unknown> = { __metadata__: notes };
  let at = 0;
  for (const { name, shape } of entries) {
    header[name] = { dtype: "F32", shape, data_offsets: [at, at + 4 * size(shape)] };
    at += 4 * size(shape);
  }
  const text = new TextEncoder().encode(JSON.stringify(header));
  const padding = (ALIGNMENT - ((8 + text.length) % ALIGNMENT)) % ALIGNMENT;
  const file = new Uint8Array(8 + text.length + padding + values.byteLength).fill(0x20);
  new DataView(file.buffer).setBigUint64(0, BigInt(text.length + padding), true);
  file.set(text, 8);
  file.set(new Uint8Array(values.buffer, values.byteOffset, values.byteLength), 8 + text.length + padding);
  return file;
}
