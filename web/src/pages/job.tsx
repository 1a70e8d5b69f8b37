import { memo, useMemo, useState } from "react";
import { everything, get, url, type Views } from "../api/client";
import { ofJob, useGrowing, usePoints, useResource } from "../data";
import { Link } from "../router";
import { Chart, type Line } from "../ui/chart";
import { bytes, number, percent, plural, score, seconds, time } from "../ui/format";
import { Badge, Bar, Card, Empty, Figure, Loaded, may, type Session } from "../ui/parts";
import { Steering } from "./home";

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
          <Contributions id={id} />
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
    <details className="menu">
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

const SHOWN = 300;
const ENDS = new Set(["RoundOpened", "RoundClosed", "RoundFailed", "UpdateAccepted", "UpdateRefused", "NodeDropped"]);

function Rounds({ id }: { id: string }) {
  const [chosen, choose] = useState<number>();
  const rounds = useGrowing(
    `rounds ${id}`,
    (after) => get("/api/v1/jobs/{job}/rounds", { job: id }, { after, limit: 1000 }),
    (event) => ofJob(id)(event) && ENDS.has(event.type),
  );
  return (
    <Card title="Rounds">
      <Loaded from={rounds}>
        {(all) =>
          all.length ? (
            <>
              <div className="strip" role="group" aria-label="Rounds, oldest first">
                {all.slice(-SHOWN).map((round) => (
                  <RoundButton key={`${round.round}-${round.attempt}`} round={round} chosen={round.round === chosen} choose={choose} />
                ))}
              </div>
              {all.length > SHOWN && <p className="quiet">The latest {number(SHOWN)} of {number(all.length)}.</p>}
              <p className="legend quiet">
                <i className="closed" /> closed <i className="closed partial" /> closed without everybody <i className="failed" /> failed <i className="open" /> open
              </p>
              <Latest rounds={all} />
              {chosen !== undefined && <Why job={id} round={chosen} />}
            </>
          ) : (
            <Empty>No round has been opened yet.</Empty>
          )
        }
      </Loaded>
    </Card>
  );
}

const RoundButton = memo(function RoundButton({ round, chosen, choose }: { round: Views["RoundView"]; chosen: boolean; choose: (round: number | undefined) => void }) {
  const said = `${round.status}, ${round.reason}`;
  const partial = round.status === "closed" && round.counted < round.cohort;
  return (
    <button
      className={partial ? "closed partial" : round.status}
      aria-pressed={chosen}
      title={`${called(round)}: ${said}`}
      aria-label={`${called(round)}${round.attempt ? `, attempt ${round.attempt + 1}` : ""}: ${said}`}
      onClick={() => choose(chosen ? undefined : round.round)}
    />
  );
});

const called = (round: Views["RoundView"]): string => (round.task === "evaluate" ? "Final evaluation" : `Round ${round.round}`);

function Latest({ rounds }: { rounds: Views["RoundView"][] }) {
  const last = rounds.at(-1)!;
  const failed = rounds.filter((round) => round.status === "failed");
  return (
    <p>
      {called(last)} {last.status === "open" ? `is open: ${last.reason}` : `${last.status}: ${last.reason}`}
      {last.seconds != null && `, after ${seconds(last.seconds)}`}.
      {failed.length > 0 && ` ${plural(failed.length, "attempt")} failed, the last because of: ${failed.at(-1)!.reason}.`}
    </p>
  );
}

function Why({ job, round }: { job: string; round: number }) {
  const why = useResource(`why ${job} ${round}`, () => get("/api/v1/jobs/{job}/rounds/{round}", { job, round }), (event) => ofJob(job)(event) && event.data.round === round);
  return (
    <Loaded from={why}>
      {(it) =>
        it.attempts.map((attempt) => (
          <section className="why" key={attempt.round.attempt} aria-label={`Round ${round}, attempt ${attempt.round.attempt + 1}`}>
            <h3>
              {called(attempt.round)}
              {it.attempts.length > 1 && `, attempt ${attempt.round.attempt + 1}`} <Badge status={attempt.round.status} />
            </h3>
            <p>
              {attempt.round.reason}. Asked {plural(attempt.round.cohort, "node")}, wanted {plural(attempt.round.wanted, "update")}, needed {attempt.round.quorum}, counted {attempt.round.counted}.
            </p>
            <div className="scroll" tabIndex={0} role="region" aria-label={`Nodes in round ${round}`}>
              <table>
                <thead>
                  <tr>
                    <th scope="col">Node</th>
                    <th scope="col">Outcome</th>
                    <th scope="col">Share</th>
                    <th scope="col" className="number">Weight</th>
                    <th scope="col" className="number">Trained</th>
                    <th scope="col" className="number">Sent</th>
                    {attempt.nodes.some((part) => part.reason) && <th scope="col">Why</th>}
                  </tr>
                </thead>
                <tbody>
                  {attempt.nodes.map((part) => (
                    <tr key={part.node}>
                      <th scope="row">{part.node}</th>
                      <td><Badge status={part.outcome} /></td>
                      <td>{part.share ? <><Bar share={part.share ?? 0} label={`Share of ${part.node}`} /> {percent(part.share ?? 0)}</> : "–"}</td>
                      <td className="number">{part.weight ? number(part.weight) : "–"}</td>
                      <td className="number">{part.seconds ? seconds(part.seconds) : "–"}</td>
                      <td className="number">{part.bytes ? bytes(part.bytes) : "–"}</td>
                      {attempt.nodes.some((each) => each.reason) && <td>{part.reason}</td>}
                    </tr>
                  ))}
                </tbody>
              </table>
            </div>
            {attempt.refusals.length > 0 && (
              <>
                <h3>Refused</h3>
                <ul>
                  {attempt.refusals.map((refusal, index) => (
                    <li key={index}>
                      <b>{refusal.node}</b>: {refusal.reason}
                      {!refusal.selected && " (had not been asked)"}
                    </li>
                  ))}
                </ul>
              </>
            )}
            {Object.entries(attempt.left_out_more ?? {}).map(([reason, count]) => (
              <p key={reason} className="quiet">
                {plural(count, "further node")} left out: {reason}
              </p>
            ))}
          </section>
        ))
      }
    </Loaded>
  );
}

function Contributions({ id }: { id: string }) {
  const read = () => everything((after) => get("/api/v1/contributions", {}, { job: id, after, limit: 1000 }));
  const given = useResource(`given ${id}`, read, (event) => ofJob(id)(event) && event.type === "RoundClosed");
  return (
    <Card title="Contributions">
      <Loaded from={given}>
        {(all) =>
          all.length ? (
            <div className="scroll" tabIndex={0} role="region" aria-label="Contributions by node">
              <table>
                <thead>
                  <tr>
                    <th scope="col">Node</th>
                    <th scope="col">Share of all weight</th>
                    <th scope="col" className="number">Updates</th>
                    <th scope="col" className="number">Weight</th>
                    <th scope="col" className="number">Trained for</th>
                    <th scope="col" className="number">Sent</th>
                  </tr>
                </thead>
                <tbody>
                  {[...all].sort((a, b) => b.share - a.share).slice(0, 200).map((part) => (
                    <tr key={part.node}>
                      <th scope="row">{part.node}</th>
                      <td><Bar share={part.share} label={`Share of ${part.node}`} /> {percent(part.share)}</td>
                      <td className="number">{number(part.updates)}</td>
                      <td className="number">{number(part.weight)}</td>
                      <td className="number">{seconds(part.seconds)}</td>
                      <td className="number">{bytes(part.bytes)}</td>
                    </tr>
                  ))}
                </tbody>
              </table>
              {all.length > 200 && <p className="quiet">The 200 largest of {number(all.length)}.</p>}
            </div>
          ) : (
            <Empty>No update has been counted yet.</Empty>
          )
        }
      </Loaded>
    </Card>
  );
}
