// A digit drawn on the screen becomes a row like those of the data set: cut out, fitted and centred.
import { useEffect, useRef, useState } from "react";
import { imageShape } from "./data";
import type { Schema } from "./protocol";

const SIZE = 280;
const PEN = 22;
const contextOf = (canvas: HTMLCanvasElement): CanvasRenderingContext2D => canvas.getContext("2d", { willReadFrequently: true })!;

/** The drawing as the rows of `schema` are: 8 x 8 blocks of ink, or 28 x 28 with a margin as in MNIST. */
export function rowOf(canvas: HTMLCanvasElement, schema: Schema): Float32Array<ArrayBuffer> | undefined {
  const { data } = contextOf(canvas).getImageData(0, 0, SIZE, SIZE);
  const ink = (x: number, y: number) => data[4 * (y * SIZE + x) + 3]! > 127;
  let [left, right, top, bottom] = [SIZE, -1, SIZE, -1];
  for (let y = 0; y < SIZE; y++)
    for (let x = 0; x < SIZE; x++)
      if (ink(x, y)) [left, right, top, bottom] = [Math.min(left, x), Math.max(right, x), Math.min(top, y), Math.max(bottom, y)];
  if (right < 0) return undefined;
  const [, side] = imageShape(schema);
  const margin = side >= 20 ? Math.round(side / 7) : 0;
  const fine = 4; // each pixel is the share of ink among 4 x 4 points
  const scale = (fine * (side - 2 * margin)) / Math.max(right - left + 1, bottom - top + 1);
  const [offsetX, offsetY] = [(fine * side - (right - left + 1) * scale) / 2, (fine * side - (bottom - top + 1) * scale) / 2];
  const row = new Float32Array(side * side);
  for (let y = 0; y < fine * side; y++)
    for (let x = 0; x < fine * side; x++) {
      const [fromX, fromY] = [Math.floor(left + (x + 0.5 - offsetX) / scale), Math.floor(top + (y + 0.5 - offsetY) / scale)];
      if (fromX >= 0 && fromX < SIZE && fromY >= 0 && fromY < SIZE && ink(fromX, fromY)) row[Math.floor(y / fine) * side + Math.floor(x / fine)]! += 1 / (fine * fine);
    }
  return row;
}

export function Pad({ schema, add, guess }: { schema: Schema; add: (row: Float32Array<ArrayBuffer>, label: number) => void; guess?: (row: Float32Array<ArrayBuffer>) => Promise<Float32Array | undefined> }) {
  const canvas = useRef<HTMLCanvasElement>(null);
  const [drawn, setDrawn] = useState<Float32Array<ArrayBuffer>>();
  const [belief, setBelief] = useState<Float32Array>();
  useEffect(() => {
    const pad = canvas.current!;
    const context = contextOf(pad);
    let last: [number, number] | undefined;
    const at = (event: PointerEvent): [number, number] => {
      const box = pad.getBoundingClientRect();
      return [((event.clientX - box.left) * SIZE) / box.width, ((event.clientY - box.top) * SIZE) / box.height];
    };
    const move = (event: PointerEvent) => {
      if (!last) return;
      const next = at(event);
      context.lineWidth = PEN;
      context.lineCap = "round";
      context.beginPath();
      context.moveTo(...last);
      context.lineTo(...next);
      context.stroke();
      last = next;
    };
    const down = (event: PointerEvent) => {
      pad.setPointerCapture(event.pointerId);
      last = at(event);
      move(event);
    };
    const up = async () => {
      last = undefined;
      const row = rowOf(pad, schema);
      setDrawn(row);
      setBelief(row && (await guess?.(row)));
    };
    const over = new AbortController();
    pad.addEventListener("pointerdown", down, over);
    pad.addEventListener("pointermove", move, over);
    pad.addEventListener("pointerup", () => void up(), over);
    pad.addEventListener("pointercancel", () => void up(), over);
    return () => over.abort();
  }, [schema, guess]);
  const clear = () => {
    contextOf(canvas.current!).clearRect(0, 0, SIZE, SIZE);
    setDrawn(undefined);
    setBelief(undefined);
  };
  const best = belief && belief.indexOf(Math.max(...belief));
  return (
    <div className="pad">
      <canvas ref={canvas} width={SIZE} height={SIZE} aria-label="Draw a digit here" />
      <p className="quiet" role="status">
        {best !== undefined ? `The model takes this for a ${best} (${Math.round(belief![best]! * 100)} %).` : drawn ? "Which digit is it?" : "Draw a digit, then say which one it is."}
      </p>
      <div className="digits">
        {Array.from({ length: schema.outputs }, (_, label) => (
          <button
            key={label}
            disabled={!drawn}
            onClick={() => {
              add(drawn!, label);
              clear();
            }}
          >
            {label}
          </button>
        ))}
      </div>
      <button className="plain" onClick={clear} disabled={!drawn}>
        Clear
      </button>
    </div>
  );
}
