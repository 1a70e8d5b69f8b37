import { useRef } from "react";
import { get, post, type Views } from "../api/client";
import { ofJobs, useResource, useStatus } from "../data";
import { useRecent } from "../live";
import { Link } from "../router";
import { ago, percent, plural, score } from "../ui/format";
import { Badge, Bar, Card, Empty, Figure, Loaded, Trouble, may, useDoing, type Session } from "../ui/parts";
import { inWords, isNews, jobOf, rightNow } from "../ui/words";

const OVER = ["completed", "stopped", "failed"];
const SHOWN = 50;

export function Home({ session }: { session: Session }) {
  const wanted = useRef(SHOWN);
  const jobs = useResource("jobs", () => newest(wanted.current), ofJobs, 5000);
  const older = () => {
    wanted.current += SHOWN;
    jobs.reload();
  };
  const status = useStatus();
  return (
    <>
      <h1>Home</h1>
      <Loaded from={status}>
        {(now) => (
          <section className="now" aria-label="What is happening now">
            <p aria-live="polite">{rightNow(now, jobs.data?.items ?? [])}</p>
            <dl className="figures">
              <Figure label="Nodes connected" value={`${now.nodes_connected} of ${now.nodes}`} />
              <Figure label="Jobs under way" value={Object.entries(now.jobs).reduce((sum, [name, count]) => sum + (OVER.includes(name) ? 0 : count), 0)} />
              <Figure label="Jobs completed" value={now.jobs.completed ?? 0} />
            </dl>
          </section>
        )}
      </Loaded>
      <div className="columns">
        <Card title="Jobs" action={may(session, "operator") && <Link className="button" to="/new">New job</Link>}>
          <Loaded from={jobs}>
            {({ items, next }) =>
              items.length ? (
                <>
                  <ul className="jobs">
                    {items.map((job) => (
                      <JobRow key={job.id} job={job} steers={may(session, "operator")} changed={jobs.reload} />
                    ))}
                  </ul>
                  {next && <button onClick={older}>Show older jobs</button>}
                </>
              ) : (
                <Empty>No job yet. {may(session, "operator") && <Link to="/new">Start the first one.</Link>}</Empty>
              )
            }
          </Loaded>
        </Card>
        <Happenings names={Object.fromEntries(jobs.data?.items.map((job) => [job.id, job.name]) ?? [])} />
      </div>
    </>
  );
}

async function newest(count: number): Promise<Views["Page_JobView_"]> {
  const items: Views["JobView"][] = [];
  let next: string | null | undefined = "";
  while (next != null && items.length < count) {
    const page: Views["Page_JobView_"] = await get("/api/v1/jobs", {}, { after: next, limit: Math.min(count - items.length, 1000) });
    items.push(...page.items);
    next = page.next;
  }
  return { items, next };
}

function JobRow({ job, steers, changed }: { job: Views["JobView"]; steers: boolean; changed: () => void }) {
  return (
    <li>
      <div className="what">
        <Link to={`/job/${job.id}`}>{job.name}</Link>
        <Badge status={job.status} />
        <small className="quiet">
          {job.model} on {job.dataset} · {ago(job.submitted_at)}
        </small>
      </div>
      <div className="how-far">
        <Bar share={job.rounds_done / job.rounds} label={`Rounds of ${job.name}`} />
        <small>
          {job.rounds_done} of {plural(job.rounds, "round")}
        </small>
      </div>
      <div className="result">{job.accuracy != null ? percent(job.accuracy) : job.loss != null ? `loss ${score(job.loss)}` : "–"}</div>
      {steers && <Steering job={job} changed={changed} />}
    </li>
  );
}

/** Pause, resume and stop, as far as the job can still be steered. */
export function Steering({ job, changed }: { job: Views["JobView"]; changed: () => void }) {
  const { busy, problem, run } = useDoing();
  if (OVER.includes(job.status)) return null;
  const tell = (wish: "pause" | "resume" | "stop") => async () => {
    await run(() => post(`/api/v1/jobs/{job}/${wish}`, { job: job.id }, {} as never));
    changed();
  };
  const paused = job.status === "paused" || job.status === "pausing";
  return (
    <div className="buttons">
      <button disabled={busy} onClick={tell(paused ? "resume" : "pause")} aria-label={`${paused ? "Resume" : "Pause"} ${job.name}`}>
        {paused ? "Resume" : "Pause"}
      </button>
      <button disabled={busy} className="danger" onClick={tell("stop")} aria-label={`Stop ${job.name}`}>
        Stop
      </button>
      {problem && <Trouble problem={problem} />}
    </div>
  );
}

function Happenings({ names }: { names: Record<string, string> }) {
  const recent = useRecent().filter(isNews);
  return (
    <Card title="What happened" className="happenings">
      {recent.length ? (
        <ol>
          {recent.slice(0, 12).map((event) => {
            const job = jobOf(event);
            return (
              <li key={event.offset}>
                <span>
                  {job && <Link to={`/job/${job}`}>{names[job] ?? job}</Link>} {inWords(event)}
                </span>
                <small className="quiet">{ago(event.at)}</small>
              </li>
            );
          })}
        </ol>
      ) : (
        <Empty>Nothing yet.</Empty>
      )}
    </Card>
  );
}
