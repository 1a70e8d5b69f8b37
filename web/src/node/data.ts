// Where a device's rows come from: assigned by the coordinator, a CSV file, pictures, or its owner's hand.
import type { Rows } from "./arithmetic";
import type { Member } from "./key";
import { ask, detailOf } from "./link";
import type { Kept } from "./keep";
import { blake3 } from "./blake3";
import { hex } from "./arithmetic";
import type { Schema, Summary } from "./protocol";
import { decode } from "./tensors";
import type { Data } from "./work";

/** What jobs here are on: a data set's name, and what its rows look like where that is known. */
export type Wanted = { name: string; data: Schema | null; assigned: boolean };

export class BadData extends Error {}

const HELD_OUT_EVERY = 5;
const MAX_ROWS = 50_000;
const isHeldOut = (row: number): boolean => row % HELD_OUT_EVERY === HELD_OUT_EVERY - 1;

export async function wanted(member: Member): Promise<Wanted[]> {
  const response = await ask(member, "/api/v1/browser/wanted", { signal: AbortSignal.timeout(30_000) });
  if (!response.ok) throw new BadData(await detailOf(response));
  return ((await response.json()) as { items: Wanted[] }).items;
}

/** This device's own part of a data set that comes with the coordinator. */
export async function assigned(member: Member, name: string): Promise<Kept> {
  const response = await ask(member, `/api/v1/browser/assigned/${encodeURIComponent(name)}`, { signal: AbortSignal.timeout(60_000) });
  if (!response.ok) throw new BadData(await detailOf(response));
  const { entries, values, notes } = decode(new Uint8Array(await response.arrayBuffer()));
  const summary = JSON.parse(notes.summary!) as Summary;
  const arrays = new Map<string, Float32Array<ArrayBuffer>>();
  let at = 0;
  for (const { name, shape } of entries) {
    const size = shape.reduce((product, each) => product * each, 1);
    arrays.set(name, values.slice(at, (at += size)));
  }
  const rows = (kind: string): Rows => ({ x: arrays.get(`${kind}.x`)!, y: arrays.get(`${kind}.y`)!, regression: summary.data.task === "regression", count: entries.find((entry) => entry.name === `${kind}.x`)!.shape[0]! });
  return { summary, data: { schema: summary.data, train: rows("train"), heldOut: rows("held_out") } };
}

/** Rows of the owner's own: every fifth is held out to measure models with. */
export function own(name: string, schema: Schema, x: Float32Array[], y: number[]): Kept {
  if (!x.length) throw new BadData("there are no rows yet");
  if (x.length > MAX_ROWS) throw new BadData(`expected at most ${MAX_ROWS} rows, came ${x.length}`);
  const take = (rows: number[]): Rows => {
    const width = x[0]!.length;
    const found = new Float32Array(rows.length * width);
    rows.forEach((row, place) => found.set(x[row]!, place * width));
    return { x: found, y: Float32Array.from(rows, (row) => y[row]!), regression: schema.task === "regression", count: rows.length };
  };
  const all = [...x.keys()];
  const data = { schema, train: take(all.filter((row) => !isHeldOut(row))), heldOut: take(all.filter(isHeldOut)) };
  const digest = hex(blake3(new Uint8Array(data.train.x.buffer)));
  return { summary: { name, data: schema, examples: data.train.count, held_out: data.heldOut.count, digest, source: "" }, data };
}

/** The rows that `own` was given, in their order: with more after them, none that is held out is trained on. */
export function given({ train, heldOut }: Data): { x: Float32Array[]; y: number[] } {
  const found = { x: [] as Float32Array[], y: [] as number[] };
  for (let row = 0; row < train.count + heldOut.count; row++) {
    const before = Math.floor(row / HELD_OUT_EVERY);
    const [from, at] = isHeldOut(row) ? [heldOut, before] : [train, row - before];
    const width = from.x.length / from.count;
    found.x.push(from.x.slice(at * width, (at + 1) * width));
    found.y.push(from.y[at]!);
  }
  return found;
}

/** A table of numbers, with a header; columns in alphabetical order, as on every node. */
export function fromCsv(text: string, name: string, target: string, expected: Schema | null): Kept {
  const [header = [], ...lines] = parseCsv(text);
  const columns = header.map((cell) => cell.trim());
  const twice = columns.find((column, place) => columns.indexOf(column) < place);
  if (twice !== undefined) throw new BadData(`the header names the column “${twice}” twice`);
  if (lines.length > MAX_ROWS) throw new BadData(`expected at most ${MAX_ROWS} rows, came ${lines.length}`);
  if (!columns.includes(target)) throw new BadData(`there is no column “${target}”; the columns are: ${columns.join(", ")}`);
  const features = columns.filter((column) => column !== target).sort();
  const places = features.map((feature) => columns.indexOf(feature));
  const x = lines.map((cells, row) => {
    if (cells.length !== columns.length) throw new BadData(`row ${row + 2}: expected ${columns.length} columns, came ${cells.length}`);
    return Float32Array.from(places, (place, column) => numberAt(cells[place]!, row, features[column]!));
  });
  const cells = lines.map((line) => line[columns.indexOf(target)]!.trim());
  const schema = expected ?? inferred(cells, features);
  if (schema.features?.length && schema.features.join() !== features.join()) throw new BadData(`the job is on the columns ${schema.features.join(", ")}; this file has ${features.join(", ")}`);
  if (!schema.features?.length && schema.shape.join() !== `${features.length}`) throw new BadData(`the job is on ${schema.shape.join(" × ")} values a row; this file has ${features.length} columns beside “${target}”`);
  const label = (cell: string, row: number): number => {
    if (schema.task === "regression") return numberAt(cell, row, target);
    const found = schema.classes?.length ? schema.classes.indexOf(cell) : Number(cell);
    if (!(Number.isInteger(found) && found >= 0 && found < schema.outputs)) throw new BadData(`row ${row + 2}, column “${target}”: “${cell}” is none of the classes ${schema.classes?.join(", ") || `0 to ${schema.outputs - 1}`}`);
    return found;
  };
  return own(name, schema, x, cells.map(label));
}

function inferred(cells: string[], features: string[]): Schema {
  const shape = [features.length];
  const values = cells.map(Number);
  if (cells.some((cell) => cell === "" || Number.isNaN(Number(cell)))) {
    const classes = [...new Set(cells)].sort();
    return { task: "classification", shape, outputs: classes.length, features, classes };
  }
  const classes = values.every((value) => Number.isInteger(value) && value >= 0 && value < 100);
  return classes ? { task: "classification", shape, outputs: Math.max(...values) + 1, features } : { task: "regression", shape, outputs: 1, features };
}

function numberAt(cell: string, row: number, column: string): number {
  const value = Number(cell.trim() || "x");
  if (!Number.isFinite(value)) throw new BadData(`row ${row + 2}, column “${column}”: expected a number, came “${cell}”`);
  return value;
}

/** RFC 4180, with commas or semicolons. */
export function parseCsv(text: string): string[][] {
  const separator = (text.split("\n", 1)[0] ?? "").includes(";") ? ";" : ",";
  const lines: string[][] = [];
  let [line, cell, quoted] = [[] as string[], "", false];
  const endLine = () => {
    line.push(cell);
    if (line.length > 1 || cell.trim()) lines.push(line);
    [line, cell] = [[], ""];
  };
  for (let at = 0; at < text.length; at++) {
    const char = text[at]!;
    if (quoted) {
      if (char !== '"') cell += char;
      else if (text[at + 1] === '"') cell += text[at++];
      else quoted = false;
    } else if (char === '"') quoted = true;
    else if (char === separator) {
      line.push(cell);
      cell = "";
    } else if (char === "\n") endLine();
    else if (char !== "\r" && char !== "\uFEFF") cell += char;
  }
  if (quoted) throw new BadData("a quotation mark is opened in this file and never closed");
  endLine();
  if (lines.length < 2) throw new BadData("expected a header and rows below it");
  return lines;
}

/** A picture as values from 0 to 1, resized to what the job's rows look like: (channels, height, width), or flat. */
export async function fromPicture(file: File, schema: Schema): Promise<Float32Array> {
  const [channels, height, width] = imageShape(schema);
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true })!;
  const bitmap = await createImageBitmap(file).catch(() => Promise.reject(new BadData(`${file.name}: this browser cannot read it as a picture, and it was not added`)));
  context.drawImage(bitmap, 0, 0, width, height);
  bitmap.close();
  const { data } = context.getImageData(0, 0, width, height);
  const value = (_: unknown, place: number): number => {
    const pixel = 4 * (place % (height * width));
    if (channels === 3) return data[pixel + Math.floor(place / (height * width))]! / 255;
    return (0.299 * data[pixel]! + 0.587 * data[pixel + 1]! + 0.114 * data[pixel + 2]!) / 255;
  };
  return Float32Array.from({ length: channels * height * width }, value);
}

/** What a row is as a picture; a square of one channel where it is flat. */
export function imageShape(schema: Schema): [number, number, number] {
  if (schema.shape.length === 3) return schema.shape as [number, number, number];
  const side = Math.sqrt(schema.shape[0]!);
  if (schema.shape.length !== 1 || !Number.isInteger(side)) throw new BadData("the rows of this job are no pictures");
  return [1, side, side];
}
