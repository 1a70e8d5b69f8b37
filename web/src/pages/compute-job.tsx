// One compute job: who worked on it, what was checked, and what came out.
import { get, post, type Views } from "../api/client";
import { useResource } from "../data";
import { number, plural, time } from "../ui/format";
import { Badge, Dialog, Figure, Loaded, Trouble, useDoing } from "../ui/parts";

type Job = Views["ComputeJobView"];

export function ComputeJob({ job, steers, close, changed }: { job: Job; steers: boolean; close: () => void; changed: () => void }) {
  const { busy, problem, run } = useDoing();
  const dispute = () => run(() => post("/api/v1/market/jobs/{job}/dispute", { job: job.job_id }, {})).then(changed);
  return (
    <Dialog title={`${job.model_type.replaceAll("_", " ")}, ${job.job_id}`} onClose={close}>
      <dl className="figures small">
        <Figure label="Status" value={<Badge status={job.status} />} />
        <Figure label="Reward" value={number(job.reward)} />
        <Figure label="Data" value={`${number(job.rows)} × ${number(job.columns)}`} />
        <Figure label="Replicas" value={number(job.replicas)} />
      </dl>
      <p className="quiet">
        {job.kind} for {job.client_address}, asked {time(job.submitted_at)}. {job.reason || job.trouble}
      </p>
      <h3>{plural(job.attempts.length, "attempt")}</h3>
      <ul className="remarks">
        {job.attempts.map((attempt) => (
          <li key={attempt.attempt}>
            <b>{attempt.worker_id}</b>, with {plural(attempt.bond, "token")} at risk: {verdict(attempt)}
            {attempt.paid > 0 && `; paid ${number(attempt.paid)}`}
          </li>
        ))}
      </ul>
      {job.result && <Result job={job.job_id} />}
      {problem && <Trouble problem={problem} />}
      {steers && job.status === "verified" && !job.settled && (
        <footer>
          <button className="danger" disabled={busy} onClick={dispute}>
            Dispute
          </button>
        </footer>
      )}
    </Dialog>
  );
}

function verdict(attempt: Job["attempts"][number]): string {
  if (attempt.holds) return `its result holds${attempt.replayed ? ", and was made again to be sure" : ""}`;
  if (attempt.holds === false) return `its result does not hold: ${attempt.reason}`;
  return attempt.reason || (attempt.committed ? "its result is being checked" : "computes");
}

function Result({ job }: { job: string }) {
  const result = useResource(`result ${job}`, () => get("/api/v1/market/jobs/{job}/result", { job }));
  return (
    <>
      <h3>Result</h3>
      <Loaded from={result}>
        {(it) => (
          <dl className="pairs">
            {Object.entries(it.values).map(([name, value]) => (
              <div key={name}>
                <dt>{name.replaceAll("_", " ")}</dt>
                <dd>{shown(value)}</dd>
              </div>
            ))}
          </dl>
        )}
      </Loaded>
    </>
  );
}

const SHOWN = 8;

function shown(value: unknown): string {
  if (typeof value === "number") return String(Number(value.toPrecision(6)));
  if (!Array.isArray(value)) return String(value);
  if (Array.isArray(value[0])) return `${value.length} × ${value[0].length}, beginning ${shown(value[0])}`;
  const first = value.slice(0, SHOWN).map(shown).join(", ");
  return value.length > SHOWN ? `${first}, … (${number(value.length)})` : first;
}
