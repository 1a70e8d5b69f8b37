// Rows from the motion sensors: three seconds of movement, as shares of what each axis did.
import { useEffect, useRef, useState } from "react";
import { plural } from "../ui/format";
import { Field, Trouble, useDoing } from "../ui/parts";
import { BadData, own } from "./data";
import type { Kept } from "./keep";
import type { Schema } from "./protocol";

const SECONDS = 3;
const AXES = ["x", "y", "z", "size"];
const MEASURES = ["mean", "deviation", "least", "most"];
const GRAVITY = 9.81;

/** Pages get the sensors on phones, over TLS only. */
export const hasMotion = (): boolean => isSecureContext && "DeviceMotionEvent" in window;

export function schemaOf(classes: string[]): Schema {
  const features = AXES.flatMap((axis) => MEASURES.map((measure) => `${axis} ${measure}`));
  return { task: "classification", shape: [features.length], outputs: classes.length, features, classes };
}

/** What the axes did, in units of gravity; `samples` are [x, y, z]. */
export function rowOf(samples: [number, number, number][]): Float32Array<ArrayBuffer> {
  if (samples.length < 10) throw new BadData("the sensors of this device gave nothing: it may have none, or not allow pages to read them");
  const columns = [0, 1, 2].map((axis) => samples.map((sample) => sample[axis]! / GRAVITY));
  columns.push(samples.map((sample) => Math.hypot(...sample) / GRAVITY));
  return Float32Array.from(
    columns.flatMap((values) => {
      const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
      const variance = values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / values.length;
      return [mean, Math.sqrt(variance), Math.min(...values), Math.max(...values)];
    }),
  );
}

type Asking = { requestPermission?: () => Promise<string> };

async function record(): Promise<Float32Array<ArrayBuffer>> {
  const asking = DeviceMotionEvent as unknown as Asking;
  if (asking.requestPermission && (await asking.requestPermission()) !== "granted") throw new BadData("this device was not allowed to read its motion sensors");
  const samples: [number, number, number][] = [];
  const hear = ({ accelerationIncludingGravity: its }: DeviceMotionEvent) => {
    if (its && its.x !== null && its.y !== null && its.z !== null) samples.push([its.x, its.y, its.z]);
  };
  addEventListener("devicemotion", hear);
  await new Promise((resolve) => setTimeout(resolve, SECONDS * 1000));
  removeEventListener("devicemotion", hear);
  return rowOf(samples);
}

export function Motion({ name, schema, done }: { name: string; schema: Schema | null; done: (rows: Kept) => void }) {
  const [called, setCalled] = useState(name || "motion");
  const [classes, setClasses] = useState((schema?.classes ?? ["still", "walking", "shaking"]).join(", "));
  const [rows, setRows] = useState<{ x: Float32Array<ArrayBuffer>[]; y: number[] }>({ x: [], y: [] });
  const { busy, problem, run } = useDoing();
  const alive = useRef(true);
  useEffect(() => () => void (alive.current = false), []);
  const named = classes.split(",").map((each) => each.trim()).filter(Boolean);
  const add = (label: number) =>
    run(async () => {
      const row = await record();
      if (alive.current) setRows((before) => ({ x: [...before.x, row], y: [...before.y, label] }));
    });
  return (
    <div className="stack">
      {!name && <Field label="What the data set is called">{(id) => <input id={id} required value={called} onChange={(event) => setCalled(event.target.value)} />}</Field>}
      {!schema && <Field label="Kinds of movement" hint="The same, in the same order, on every device.">{(id, described) => <input id={id} aria-describedby={described} disabled={rows.x.length > 0} value={classes} onChange={(event) => setClasses(event.target.value)} />}</Field>}
      <p role="status">{busy ? `Recording for ${SECONDS} seconds…` : "Say what you are about to do, then do it."}</p>
      <div className="buttons">
        {named.map((each, label) => (
          <button key={each} disabled={busy} onClick={() => void add(label)}>
            {each}: {rows.y.filter((y) => y === label).length}
          </button>
        ))}
      </div>
      {problem && <Trouble problem={problem} />}
      <button className="main" disabled={busy || !rows.x.length} onClick={() => void run(async () => done(own(called.trim(), schema ?? schemaOf(named), rows.x, rows.y)))}>
        Train on {plural(rows.x.length, "movement")}
      </button>
    </div>
  );
}
