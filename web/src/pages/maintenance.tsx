// Maintenance: what everybody sees of it, on every page, and the switch for those who may.
import { useState, type FormEvent } from "react";
import { put, remove, type Views } from "../api/client";
import { useStatus, type Resource } from "../data";
import { time } from "../ui/format";
import { Card, Field, Sure, Trouble, may, useDoing, type Session } from "../ui/parts";

type Status = Resource<Views["StatusView"]>;

export function MaintenanceBanner({ status, session }: { status: Status; session: Session }) {
  const it = status.data;
  return (
    <div role="status">
      {it?.maintenance && (
        <div className="banner">
          <span>
            <b>Maintenance: {it.maintenance}.</b> Nothing new begins: open rounds run to their end, then jobs wait.{" "}
            <small>
              {it.maintenance_by && `Begun by ${it.maintenance_by}`}
              {it.maintenance_since != null && ` on ${time(it.maintenance_since)}`}
            </small>
          </span>
          {may(session, "admin") && <Over changed={status.reload} />}
        </div>
      )}
    </div>
  );
}

/** For admins, in the settings. */
export function MaintenanceSwitch() {
  const status = useStatus();
  const [reason, setReason] = useState("");
  const { busy, problem, run } = useDoing();
  const begin = (event: FormEvent) => {
    event.preventDefault();
    void run(async () => {
      await put("/api/v1/maintenance", {}, { reason });
      setReason("");
      status.reload();
    });
  };
  return (
    <Card title="Maintenance">
      {status.data?.maintenance ? (
        <p>
          Under way: {status.data.maintenance}. <Over changed={status.reload} />
        </p>
      ) : (
        <form className="stack" onSubmit={begin}>
          <Field label="Why" hint="Everybody reads it. Open rounds run to their end, jobs are paused and new ones are refused until it is over.">
            {(id, described) => <input id={id} aria-describedby={described} required maxLength={200} value={reason} onChange={(event) => setReason(event.target.value)} />}
          </Field>
          {problem && <Trouble problem={problem} />}
          <button disabled={busy}>Begin maintenance</button>
        </form>
      )}
    </Card>
  );
}

function Over({ changed }: { changed: () => void }) {
  return <Sure label="End maintenance" question="All jobs that were paused for it go on, and new ones are taken." act={() => remove("/api/v1/maintenance", {}).then(changed)} />;
}
