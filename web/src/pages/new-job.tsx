import { useEffect, useMemo, useState, type FormEvent } from "react";
import { get, newKey, post, url, type Views } from "../api/client";
import { useResource } from "../data";
import { href, navigate, useQuery } from "../router";
import { ChoiceField, StructFields, Value, refersTo, resolve, without, type Choice, type Fields, type Registry, type Schema, type Schemas } from "../ui/form";
import { bytes, list, number, plural, seconds } from "../ui/format";
import { Card, Field, Figure, Loaded, Trouble, useDoing } from "../ui/parts";

type Known = { schemas: Schemas; registries: Record<string, Registry>; held: string[]; datasets: string[]; from?: Fields };

/** Which registry a choice of a job is from. */
const REGISTRY_OF: Record<string, string> = { model: "models", strategy: "strategies", reducer: "reducers", lr_schedule: "schedules" };
const FIRST = ["dataset", "name", "rounds", "model", "strategy"];

async function read(from: string | null): Promise<Known> {
  const [document, registries, nodes, job] = await Promise.all([
    fetch("/openapi.json").then((answer) => answer.json() as Promise<{ components: { schemas: Schemas } }>),
    get("/api/v1/registry"),
    get("/api/v1/nodes", {}, { connected: true, limit: 1000 }),
    from ? get("/api/v1/jobs/{job}", { job: from }) : undefined,
  ]);
  const held = [...new Set(nodes.items.map((node) => node.dataset).filter(Boolean))].sort();
  const known = registries as Record<string, Registry>;
  const bundled = Object.entries(known.datasets ?? {}).filter(([name, schema]) => !schema.required?.length && !held.includes(name));
  return { schemas: document.components.schemas, registries: known, held, datasets: [...held, ...bundled.map(([name]) => name)], from: job?.spec as Fields | undefined };
}

export function NewJob() {
  const from = useQuery().get("from");
  const known = useResource(`new ${from}`, () => read(from));
  return (
    <>
      <h1>New job</h1>
      <Loaded from={known}>{(it) => <Form known={it} />}</Loaded>
    </>
  );
}

function Form({ known }: { known: Known }) {
  const { schemas, registries } = known;
  const [spec, setSpec] = useState<Fields>(() => known.from ?? { dataset: known.held[0] ?? "", model: { name: "mlp", options: {} } });
  const [key] = useState(newKey);
  const { busy, problem, run } = useDoing();
  const set = (name: string, value: unknown) => setSpec((old) => without({ ...old, [name]: value }));
  const job = schemas.JobSpec!;
  const fields = Object.entries(job.properties ?? {});
  const plain = (name: string) => <Value key={name} name={name} schema={job.properties![name]!} value={spec[name]} set={(value) => set(name, value)} />;
  const choice = (name: string) => (
    <ChoiceField
      key={name}
      label={name[0]!.toUpperCase() + name.slice(1)}
      registry={registries[REGISTRY_OF[name] ?? "datasets"] ?? {}}
      optional={name !== "model" && job.properties![name]!.default == null ? "none" : undefined}
      value={(spec[name] ?? job.properties![name]!.default ?? undefined) as Choice | undefined}
      set={(value) => set(name, value)}
    />
  );
  const choices = fields.filter(([name, schema]) => refersTo(schema, "Choice") && !FIRST.includes(name));
  const structs = fields.filter(([, schema]) => isStruct(schema, schemas));
  const others = fields.filter(([name, schema]) => !FIRST.includes(name) && !refersTo(schema, "Choice") && !isStruct(schema, schemas));
  const submit = (event: FormEvent) => {
    event.preventDefault();
    void run(async () => {
      const made = await post("/api/v1/jobs", {}, spec as Views["JobSpec"], key);
      navigate(href(`/job/${made.id}`));
    });
  };
  return (
    <form onSubmit={submit} className="new-job" noValidate>
      <div>
        <Card title="What to train">
          <div className="fields">
            <Field label="Data set" hint={known.held.length ? `Connected nodes hold ${list(known.held)}.` : "No node is connected yet; a bundled data set such as digits works all the same."}>
              {(id, described) => (
                <>
                  <input id={id} aria-describedby={described} list="datasets" required value={String(spec.dataset ?? "")} onChange={(event) => set("dataset", event.target.value)} />
                  <datalist id="datasets">
                    {known.datasets.map((name) => (
                      <option key={name} value={name} />
                    ))}
                  </datalist>
                </>
              )}
            </Field>
            {plain("name")}
            {plain("rounds")}
          </div>
          {choice("model")}
          {choice("strategy")}
        </Card>
        {structs.map(([name, schema]) => (
          <Struct key={name} name={name} schema={schema} known={known} value={spec[name] as Fields | null | undefined} set={(value) => set(name, value)} />
        ))}
        <details className="card">
          <summary>More</summary>
          <div className="fields">{others.map(([name]) => plain(name))}</div>
          {choices.map(([name]) => choice(name))}
        </details>
      </div>
      <Verdict spec={spec} busy={busy} problem={problem} />
    </form>
  );
}

function isStruct(schema: Schema, schemas: Schemas): boolean {
  const inner = schema.anyOf?.find((option) => option.$ref) ?? schema;
  return !!inner.$ref && !refersTo(schema, "Choice") && !!resolve(inner, schemas).properties;
}

function Struct({ name, schema, known, value, set }: { name: string; schema: Schema; known: Known; value: Fields | null | undefined; set: (value: Fields | undefined) => void }) {
  const optional = !!schema.anyOf;
  const inner = resolve(schema.anyOf?.find((option) => option.$ref) ?? schema, known.schemas);
  const choices = Object.entries(inner.properties ?? {}).filter(([, field]) => refersTo(field, "Choice"));
  const title = name[0]!.toUpperCase() + name.slice(1).replaceAll("_", " ");
  const change = (given: Fields) => set(Object.keys(given).length || optional ? given : undefined);
  return (
    <details className="card" open={name === "training"}>
      <summary>{title}</summary>
      {optional && (
        <label className="check">
          <input type="checkbox" checked={value != null} onChange={(event) => set(event.target.checked ? {} : undefined)} />
          <span>{(inner.description ?? title).split("\n")[0]!.replaceAll("`", "")}</span>
        </label>
      )}
      {(!optional || value != null) && (
        <>
          <StructFields schema={inner} value={value ?? {}} set={change} but={choices.map(([each]) => each)} />
          {choices.map(([each, field]) => (
            <ChoiceField
              key={each}
              label={each === "data" ? "Data that the coordinator measures on" : each.replaceAll("_", " ").replace(/^lr/, "Learning-rate")}
              registry={known.registries[REGISTRY_OF[each] ?? "datasets"] ?? {}}
              optional={field.default == null ? "none" : undefined}
              value={((value ?? {})[each] ?? field.default ?? undefined) as Choice | undefined}
              set={(given) => change(without({ ...value, [each]: given }))}
            />
          ))}
        </>
      )}
    </details>
  );
}

/** What the coordinator says to the job as it stands, before it is sent. */
function Verdict({ spec, busy, problem }: { spec: Fields; busy: boolean; problem: Error | undefined }) {
  const text = JSON.stringify(spec);
  const settled = useSettled(text);
  const check = useResource(`check ${settled}`, () => post("/api/v1/jobs/check", {}, JSON.parse(settled) as Views["JobSpec"]));
  const said = settled === text ? check : { data: undefined, problem: undefined };
  const curl = useMemo(() => `curl -X POST ${location.origin}${url("/api/v1/jobs")} \\\n  -H 'content-type: application/json' \\\n  -d '${text.replaceAll("'", "'\\''")}'`, [text]);
  return (
    <aside className="verdict">
      <Card title="Ready?">
        <div aria-live="polite">
          {said.problem && <Trouble problem={said.problem} />}
          {said.data && (
            <p className="fine">
              {said.data.nodes_ready >= said.data.nodes_needed
                ? `Starts at once: ${plural(said.data.nodes_ready, "node is", "nodes are")} ready, ${said.data.nodes_needed} needed.`
                : `Waits for nodes: ${said.data.nodes_needed} needed, ${said.data.nodes_ready} ready.`}
            </p>
          )}
          {!said.data && !said.problem && <p className="quiet">Checking…</p>}
        </div>
        {said.data && <Foreseen key={settled} spec={settled} />}
        {problem && <Trouble problem={problem} />}
        <button className="main" disabled={busy || !said.data}>
          Start training
        </button>
        <details>
          <summary>As a request</summary>
          <pre tabIndex={0}>{curl}</pre>
        </details>
      </Card>
    </aside>
  );
}

/** What the job will take. */
function Foreseen({ spec }: { spec: string }) {
  const forecast = useResource(`forecast ${spec}`, () => post("/api/v1/jobs/forecast", {}, JSON.parse(spec) as Views["JobSpec"]));
  if (forecast.problem) return <Trouble problem={forecast.problem} />;
  if (!forecast.data) return <p className="quiet" role="status">Forecasting…</p>;
  const it = forecast.data;
  return (
    <section aria-label="Forecast" className="stack">
      <h3>It will take about</h3>
      <dl className="figures small two">
        <Figure label="Time" value={seconds(it.seconds)} />
        <Figure label="Sent by nodes" value={bytes(it.bytes_up)} />
        <Figure label="Sent to nodes" value={bytes(it.bytes_down)} />
        <Figure label="Energy" value={energy(it.joules)} hint={`At ${it.watts} W a node`} />
        <Figure label="Memory here" value={bytes(it.coordinator_memory)} hint="Of the coordinator, for aggregation" />
        <Figure label="Memory of a node" value={bytes(it.node_memory)} hint="Of the largest, beside activations" />
      </dl>
      <p className="quiet">
        {number(it.parameters)} parameters, {plural(it.updates, "update")}.{" "}
        {it.measured ? `${plural(it.measured, "node has", "nodes have")} trained this model before.` : it.scaled ? "Scaled from other models that these nodes trained." : "No node has trained here yet: speeds are assumed."}
      </p>
      {(it.notes ?? []).map((note) => (
        <p key={note} className="quiet">{note[0]!.toUpperCase() + note.slice(1)}.</p>
      ))}
    </section>
  );
}

const energy = (joules: number): string => (joules < 3_600_000 ? (joules < 36_000 ? `${joules < 100 ? joules.toPrecision(2) : Math.round(joules)} J` : `${(joules / 3600).toFixed(1)} Wh`) : `${(joules / 3_600_000).toFixed(1)} kWh`);

/** A value once it has not changed for a moment. */
function useSettled(value: string, pause = 300): string {
  const [settled, settle] = useState(value);
  useEffect(() => {
    const timer = setTimeout(() => settle(value), pause);
    return () => clearTimeout(timer);
  }, [value, pause]);
  return settled;
}
