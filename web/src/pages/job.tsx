import { useMemo, useState } from "react";
import { everything, get, url, type Views } from "../api/client";
import { ofJob, usePoints, useResource } from "../data";
import { Link } from "../router";
import { Chart, type Line } from "../ui/chart";
import { bytes, number, percent, score, seconds, time } from "../ui/format";
import { Badge, Card, Empty, Figure, Loaded, may, type Session } from "../ui/parts";
import { Contributions, Earned, Excluded } from "./contributions";
import { Steering } from "./home";
import { Rounds } from "./rounds";

type Points = Views["MetricPoint"][];

export function Job({ id, session }: { id: string; session: Session }) {
  const job = useResource(`job ${id}`, () => get("/api/v1/jobs/{job}", { job: id }), ofJob(id), 10_000);
  const points = usePoints(id);
  if (!job.data) {
    return (
      <>
        <h1>Job</h1>
        <Loaded from={job}>{() => null}</Loaded>
      </>
    );
  }
  return (
    <Loaded from={job}>
      {(it) => (
        <>
          <div className="title">
            <h1>{it.name}</h1>
            <Badge status={it.status} />
            <div className="buttons">
              {may(session, "operator") && <Steering job={it} changed={job.reload} />}
              {may(session, "operator") && <Link className="button" to={`/new?from=${it.id}`}>Clone</Link>}
              {it.model_digest && <a className="button" href={url("/api/v1/jobs/{job}/model", { job: id })} download>Download model</a>}
            </div>
          </div>
          <p className="quiet">
            {it.model} on {it.dataset} with {it.strategy}
            {it.reason && <> · {it.reason}</>}
          </p>
          <dl className="figures">
            <Figure label="Round" value={`${it.rounds_done} of ${it.rounds}`} />
            <Figure label="Accuracy" value={it.accuracy == null ? "–" : percent(it.accuracy)} hint="The latest evaluation" />
            <Figure label="Loss" value={it.loss == null ? "–" : score(it.loss)} hint="The latest evaluation" />
            <Figure label="Updates moved" value={bytes((points.data ?? []).reduce((sum, point) => sum + point.bytes, 0))} />
            <Figure label="Nodes ready" value={`${it.nodes_ready} of ${it.nodes_needed}`} hint="Of those that a round needs" />
            <Figure label="Parameters" value={number(it.parameters)} />
          </dl>
          <Curves job={it} points={points.data ?? []} />
          <Rounds id={id} />
          <div className="halves">
            <Contributions id={id} />
            <Excluded id={id} />
          </div>
          {it.spec.rewards && <Earned id={id} />}
          <Card title="Specification">
            <p className="quiet">
              Submitted {time(it.submitted_at)} by {it.by || "somebody"} as <code>{it.id}</code>
            </p>
            <details>
              <summary>As JSON</summary>
              <pre tabIndex={0}>{JSON.stringify(it.spec, null, 2)}</pre>
            </details>
          </Card>
        </>
      )}
    </Loaded>
  );
}

/** What was measured of a model: by the coordinator if it measures, else by the nodes. */
function measured(point: Points[number], metric: string): number | null {
  return point.coordinator[metric] ?? point.nodes[metric] ?? null;
}

function Curves({ job, points }: { job: Views["JobView"]; points: Points }) {
  const [others, setOthers] = useState<string[]>([]);
  const compared = useResource(`compare ${others.join(" ")}`, () => Promise.all(others.map(historyOf)));
  const shown = useMemo(() => [{ id: job.id, name: job.name, points }, ...(compared.data ?? [])], [job.id, job.name, points, compared.data]);
  const x = useMemo(() => {
    const last = Math.max(0, ...shown.flatMap((each) => each.points.map((point) => point.round)));
    return Array.from({ length: last + 1 }, (_, round) => round);
  }, [shown]);
  const lines = (value: (point: Points[number]) => number | null): Line[] =>
    shown.map((each) => {
      const by = new Map(each.points.map((point) => [point.round, value(point)]));
      return { label: each.name === job.name && each.id !== job.id ? each.id : each.name, values: x.map((round) => by.get(round) ?? null) };
    });
  const accuracy = useMemo(() => lines((point) => measured(point, "accuracy")), [shown, x]);
  const loss = useMemo(() => lines((point) => measured(point, "loss")), [shown, x]);
  const moved = useMemo(() => lines((point) => (point.round ? point.bytes : null)), [shown, x]);
  const took = useMemo(() => lines((point) => (point.round ? point.seconds : null)), [shown, x]);
  const hasAccuracy = accuracy.some((line) => line.values.some((value) => value != null));
  return (
    <Card title="Progress" action={<Compare job={job} chosen={others} choose={setOthers} />}>
      {points.length ? (
        <div className="charts">
          {hasAccuracy && <Chart title="Accuracy" x={x} lines={accuracy} format={(value) => percent(value, 0)} />}
          <Chart title="Loss" x={x} lines={loss} format={score} from={0} />
          <Chart title="Bytes of updates per round" x={x} lines={moved} format={bytes} from={0} height={150} />
          <Chart title="Time per round" x={x} lines={took} format={seconds} from={0} height={150} />
        </div>
      ) : (
        <Empty>No round has closed yet.</Empty>
      )}
    </Card>
  );
}

async function historyOf(id: string): Promise<{ id: string; name: string; points: Points }> {
  const [job, points] = await Promise.all([
    get("/api/v1/jobs/{job}", { job: id }),
    everything((after) => get("/api/v1/jobs/{job}/metrics", { job: id }, { after, limit: 1000 })),
  ]);
  return { id, name: job.name, points };
}

function Compare({ job, chosen, choose }: { job: Views["JobView"]; chosen: string[]; choose: (ids: string[]) => void }) {
  const jobs = useResource("to compare", () => get("/api/v1/jobs", {}, { dataset: job.dataset, limit: 20 }));
  const others = (jobs.data?.items ?? []).filter((other) => other.id !== job.id && other.rounds_done > 0);
  if (!others.length) return null;
  return (
    <details className="menu" onKeyDown={(event) => { if (event.key === "Escape") event.currentTarget.open = false; }}>
      <summary className="button">Compare</summary>
      <div>
        {others.map((other) => (
          <label key={other.id} className="check">
            <input
              type="checkbox"
              checked={chosen.includes(other.id)}
              disabled={!chosen.includes(other.id) && chosen.length >= 5}
              onChange={(event) => choose(event.target.checked ? [...chosen, other.id] : chosen.filter((id) => id !== other.id))}
            />
            <span>
              {other.name} <small className="quiet">{other.model}, {other.strategy}</small>
            </span>
          </label>
        ))}
      </div>
    </details>
  );
}
