// Rows of the owner's own, as a file, as pictures, or drawn; they are kept on this device only.
import { useState, type Dispatch, type SetStateAction } from "react";
import { plural } from "../ui/format";
import { Card, Field, Trouble, useDoing } from "../ui/parts";
import { BadData, fromCsv, fromPicture, given, imageShape, own, parseCsv, type Wanted } from "./data";
import { Pad } from "./drawing";
import { hasMotion, Motion, schemaOf } from "./motion";
import type { Kept } from "./keep";
import type { Schema } from "./protocol";

type Props = { wanted: Wanted; before?: Kept; guess?: (row: Float32Array<ArrayBuffer>) => Promise<Float32Array | undefined>; done: (rows: Kept) => void; back: () => void };

/** Rows so far, with what each is of; they outlive a look at another way. */
type Labelled = { x: Float32Array[]; y: number[] };
type Gathered = { wanted: Wanted; schema: Schema; rows: Labelled; add: Dispatch<SetStateAction<Labelled>>; done: Props["done"] };
const NONE: Labelled = { x: [], y: [] };

export function Own({ wanted, before, guess, done, back }: Props) {
  const ways = waysFor(wanted.data);
  const [way, setWay] = useState(before ? "draw" : ways[0]);
  const [drawn, setDrawn] = useState(() => (before ? given(before.data) : NONE));
  const [pictures, setPictures] = useState(NONE);
  return (
    <Card title={wanted.name ? `My own data for “${wanted.name}”` : "My own data"} action={<button onClick={back}>Back</button>}>
      {!ways.length && <p>The rows of this job are movements, which this browser does not let pages read: open the link over TLS, on a phone.</p>}
      {!before && ways.length > 1 && (
        <div className="segments" role="radiogroup" aria-label="Where the rows come from">
          {ways.map((each) => (
            <label key={each}>
              <input type="radio" name="way" checked={way === each} onChange={() => setWay(each)} />
              {each === "csv" ? "CSV" : each}
            </label>
          ))}
        </div>
      )}
      {way === "draw" && <Draw wanted={wanted} schema={wanted.data!} rows={drawn} add={setDrawn} guess={guess} done={done} />}
      {way === "motion" && <Motion name={wanted.name} schema={wanted.data} done={done} />}
      {way === "csv" && <Csv wanted={wanted} done={done} />}
      {way === "pictures" && <Pictures wanted={wanted} schema={wanted.data!} rows={pictures} add={setPictures} done={done} />}
    </Card>
  );
}

/** How rows like these can come about here; those with named columns are no pictures, whatever their number. */
export function waysFor(schema: Schema | null): string[] {
  const moves = hasMotion() ? ["motion"] : [];
  if (!schema) return ["csv", ...moves];
  if (schema.features?.join() === schemaOf([]).features!.join()) return moves;
  if (schema.features?.length || schema.task !== "classification") return ["csv"];
  let channels: number;
  try {
    [channels] = imageShape(schema);
  } catch {
    return ["csv"];
  }
  return [...(schema.outputs === 10 && channels === 1 ? ["draw"] : []), "pictures", ...(schema.shape.length === 1 ? ["csv"] : [])];
}

function Draw({ wanted, schema, rows, add, guess, done }: Gathered & { guess?: Props["guess"] }) {
  const { problem, run } = useDoing();
  return (
    <>
      <Pad schema={schema} guess={guess} add={(row, label) => add(({ x, y }) => ({ x: [...x, row], y: [...y, label] }))} />
      {problem && <Trouble problem={problem} />}
      <button className="main" disabled={!rows.x.length} onClick={() => void run(async () => done(own(wanted.name, schema, rows.x, rows.y)))}>
        Train on {plural(rows.x.length, "digit")}
      </button>
    </>
  );
}

function Csv({ wanted, done }: { wanted: Wanted; done: Props["done"] }) {
  const [name, setName] = useState(wanted.name);
  const [text, setText] = useState("");
  const [columns, setColumns] = useState<string[]>([]);
  const [target, setTarget] = useState("");
  const { busy, problem, run } = useDoing();
  const read = (file?: File) =>
    run(async () => {
      const found = file ? await file.text() : "";
      const header = found ? parseCsv(found)[0]!.map((cell) => cell.trim()) : [];
      setText(found);
      setColumns(header);
      setTarget(header.at(-1) ?? "");
    });
  return (
    <form
      className="stack"
      onSubmit={(event) => {
        event.preventDefault();
        void run(async () => done(fromCsv(text, name.trim(), target, wanted.data)));
      }}
    >
      {!wanted.name && <Field label="What the data set is called" hint="As in the job that is to train on it.">{(id, described) => <input id={id} aria-describedby={described} required value={name} onChange={(event) => setName(event.target.value)} />}</Field>}
      <Field label="CSV file" hint="Numbers, with the names of the columns in the first row.">{(id, described) => <input id={id} aria-describedby={described} type="file" accept=".csv,text/csv,text/plain" required onChange={(event) => void read(event.target.files?.[0])} />}</Field>
      {columns.length > 0 && (
        <Field label="Column to predict">
          {(id) => (
            <select id={id} value={target} onChange={(event) => setTarget(event.target.value)}>
              {[...new Set(columns)].map((column) => (
                <option key={column}>{column}</option>
              ))}
            </select>
          )}
        </Field>
      )}
      {problem && <Trouble problem={problem} />}
      <button className="main" disabled={busy || !columns.length}>
        Train on this file
      </button>
    </form>
  );
}

function Pictures({ wanted, schema, rows, add, done }: Gathered) {
  const [label, setLabel] = useState(0);
  const { busy, problem, run } = useDoing();
  const classes = Array.from({ length: schema.outputs }, (_, place) => schema.classes?.[place] ?? String(place));
  const read = (input: HTMLInputElement) =>
    run(async () => {
      const files = Array.from(input.files ?? []);
      input.value = ""; // what is refused can be chosen again
      const refused: string[] = [];
      for (const file of files) { // one at a time: a photograph takes some 50 MB when it is open
        try {
          const row = await fromPicture(file, schema);
          add(({ x, y }) => ({ x: [...x, row], y: [...y, label] }));
        } catch (error) {
          refused.push((error as Error).message);
        }
      }
      if (refused.length) throw new BadData(refused.join("; "));
    });
  return (
    <div className="stack">
      <Field label="Pictures of">
        {(id) => (
          <select id={id} value={label} onChange={(event) => setLabel(Number(event.target.value))}>
            {classes.map((name, place) => (
              <option key={place} value={place}>
                {name}
              </option>
            ))}
          </select>
        )}
      </Field>
      <Field label="Add pictures">{(id) => <input id={id} type="file" accept="image/*" multiple disabled={busy} onChange={(event) => void read(event.target)} />}</Field>
      <p className="quiet">{classes.map((name, place) => `${name}: ${rows.y.filter((each) => each === place).length}`).join(" · ")}</p>
      {problem && <Trouble problem={problem} />}
      <button className="main" disabled={busy || !rows.x.length} onClick={() => void run(async () => done(own(wanted.name, schema, rows.x, rows.y)))}>
        Train on {plural(rows.x.length, "picture")}
      </button>
    </div>
  );
}
