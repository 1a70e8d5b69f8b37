// The node's page: join, choose what to train on, and see what this device does.
import { useCallback, useEffect, useRef, useState, type ReactNode } from "react";
import { percent, plural, score } from "../ui/format";
import { Logo } from "../ui/icons";
import { Card, Copied, Field, Figure, Sure, Trouble, useDoing } from "../ui/parts";
import { assigned, wanted, type Wanted } from "./data";
import * as keep from "./keep";
import { addressOf, type Member } from "./key";
import { join } from "./link";
import type { Rules } from "./owner";
import { Own, waysFor } from "./own";
import { Runner, type Status } from "./runner";

export function Page() {
  const [member, setMember] = useState<Member>();
  const [kept, setKept] = useState<keep.Kept | "none">();
  const [problem, setProblem] = useState<Error>();
  useEffect(() => {
    const load = async () => {
      setMember(await keep.member());
      setKept((await keep.rows()) ?? "none");
    };
    load().catch((error: Error) => {
      setProblem(error);
      setKept("none");
    });
  }, []);
  const choose = useCallback((rows: keep.Kept) => {
    setKept(rows);
    keep.keepRows(rows).then(() => setProblem(undefined), setProblem);
  }, []);
  const [token, setToken] = useState(invited);
  useEffect(() => {
    const begin = () => setToken(invited());
    window.addEventListener("hashchange", begin);
    return () => window.removeEventListener("hashchange", begin);
  }, []);
  const joined = (its: Member) => {
    setToken("");
    setMember(its);
  };
  const invitation = token && <Join key={token} token={token} done={joined} />;
  const leave = async () => {
    await keep.forget(); // where this fails, the question that led here says so
    location.assign("/node");
  };
  if (!kept) return null;
  return (
    <main className="node">
      <h1>
        <Logo /> Tutti on this device
      </h1>
      {problem && <Trouble problem={problem} />}
      {!member && (invitation || <NoInvitation />)}
      {member && kept === "none" && <Choose member={member} done={choose} />}
      {member && kept !== "none" && <Working member={member} kept={kept} change={choose} leave={leave} invitation={invitation} />}
    </main>
  );
}

const invited = (): string => (location.pathname === "/join" ? location.hash.slice(1) : "");

function NoInvitation() {
  return (
    <Card title="An invitation is needed">
      <p>This device takes no part yet. Open a join link, or scan the QR code that the coordinator’s Join page shows.</p>
    </Card>
  );
}

function newName(): string {
  const kind = /iPhone|Android.*Mobile/.test(navigator.userAgent) ? "phone" : /iPad|Android/.test(navigator.userAgent) ? "tablet" : "browser";
  return `${kind}-${random(2)}`;
}

function random(bytes: number): string {
  return Array.from(crypto.getRandomValues(new Uint8Array(bytes)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function Join({ token, done }: { token: string; done: (member: Member) => void }) {
  const [name, setName] = useState(newName);
  const [key] = useState(() => random(32));
  const { busy, problem, run } = useDoing();
  return (
    <>
      <Card title="Train together from this device">
        <p>You are invited. This device gets a model, improves it with data that stay here, and sends back only what changed in the model.</p>
        <form
          className="stack"
          onSubmit={(event) => {
            event.preventDefault();
            void run(async () => {
              const member = { node: name.trim(), key };
              await join(token, member);
              try {
                await keep.remember(member);
              } finally {
                history.replaceState(null, "", "/node");
                done(member);
              }
            });
          }}
        >
          <Field label="What this device is called" hint="Letters, digits, dots and dashes; others who take part can see it.">
            {(id, described) => <input id={id} aria-describedby={described} required maxLength={64} pattern="[A-Za-z0-9][A-Za-z0-9._\-]*" value={name} onChange={(event) => setName(event.target.value)} />}
          </Field>
          {problem && <Trouble problem={problem} />}
          <button className="main big" disabled={busy}>
            Join with this device
          </button>
        </form>
      </Card>
      <details className="card">
        <summary>Join with a computer instead</summary>
        <p>Run this where the data are:</p>
        <Copied text={`tutti join '${location.href}' --data csv:path=mine.csv,target=outcome`} label="Copy command" />
        <p className="quiet">If something does not work, this says what:</p>
        <Copied text={`tutti doctor '${location.href}'`} />
      </details>
    </>
  );
}

function Choose({ member, done }: { member: Member; done: (rows: keep.Kept) => void }) {
  const [sets, setSets] = useState<Wanted[]>();
  const [own, setOwn] = useState<Wanted>();
  const { busy, problem, run } = useDoing();
  const load = useCallback(() => void run(async () => setSets(await wanted(member))), [member]);
  useEffect(load, [load]);
  if (own) return <Own wanted={own} done={done} back={() => setOwn(undefined)} />;
  return (
    <Card title="What shall it train on?">
      {problem && <Trouble problem={problem} retry={load} />}
      {!sets && !problem && <p className="quiet" role="status">Loading…</p>}
      <div className="picks">
        {sets?.map((set) => (
          <div key={set.name} className="picks">
            {set.assigned && (
              <button disabled={busy} onClick={() => void run(async () => done(await assigned(member, set.name)))}>
                A part of “{set.name}” from the coordinator
                <small className="quiet">For trying out: rows that anybody may have.</small>
              </button>
            )}
            {set.data && (
              <button disabled={busy} onClick={() => setOwn(set)}>
                My own data for “{set.name}”
                <small className="quiet">A CSV file, pictures, or digits drawn by hand. They stay on this device.</small>
              </button>
            )}
          </div>
        ))}
        {sets && (
          <button disabled={busy} onClick={() => setOwn({ name: "", data: null, assigned: false })}>
            My own data for another job
            <small className="quiet">A CSV file, or movements of this phone. You say what the data set is called.</small>
          </button>
        )}
      </div>
    </Card>
  );
}

const DOING = { fetching: "getting the model", training: "training", sending: "sending its update", waiting: "done, waiting for the others" };

function sentence(status: Status): string {
  if (status.link === "refused") return "This device takes no part now.";
  if (status.objection) return `Not working now: ${status.objection}.`;
  if (status.link === "away") return "No connection to the coordinator; trying again.";
  if (status.link === "connecting") return "Connecting…";
  const task = status.task;
  return task ? `${task.job}, round ${task.round} of ${task.rounds}: ${DOING[task.what]}.` : "Connected, waiting for work.";
}

type Work = { member: Member; kept: keep.Kept; change: (rows: keep.Kept) => void; leave: () => Promise<void>; invitation: ReactNode };

function Working({ member, kept, change, leave, invitation }: Work) {
  const [rules, setRules] = useState(keep.rules());
  const [status, setStatus] = useState<Status>();
  const [adding, setAdding] = useState(false);
  const [problem, setProblem] = useState<Error>();
  const runner = useRef<Runner>(undefined);
  const current = useRef(rules);
  const remembered = useCallback((work: () => void) => {
    try {
      work();
    } catch (error) {
      setProblem(error as Error);
    }
  }, []);
  useEffect(() => {
    let its: Runner | undefined;
    let gone = false;
    let tally = keep.tally();
    const show = (next: Status) => {
      setStatus(next);
      if (next.tally !== tally) remembered(() => keep.setTally((tally = next.tally)));
    };
    void kernel().then(async (wasm) => {
      if (gone) return;
      its = runner.current = new Runner(member, kept.summary, kept.data, wasm, tally, show);
      await its.start(() => current.current);
    }).catch(setProblem);
    return () => {
      gone = true;
      its?.stop();
    };
  }, [member, kept, remembered]);
  const allow = (next: Rules) => {
    current.current = next;
    setRules(next);
    remembered(() => keep.setRules(next));
    runner.current?.rulesChanged();
  };
  const guess = useCallback((row: Float32Array<ArrayBuffer>) => runner.current!.guess(row), []);
  const { summary } = kept;
  const drawable = !summary.source && waysFor(summary.data).includes("draw");
  const knows = runner.current?.knows ?? { charging: false, wifi: false };
  const newest = status?.tally.history.at(-1);
  return (
    <>
      <Card>
        <p className="state" role="status">{status ? sentence(status) : "Starting…"}</p>
        <progress aria-label="Progress of this round" value={status?.task?.done ?? 0} max={1} />
        {status?.trouble && <Trouble problem={new Error(status.trouble)} />}
        {problem && <Trouble problem={problem} />}
        <button className={rules.paused ? "main big" : "big"} onClick={() => allow({ ...rules, paused: !rules.paused })}>
          {rules.paused ? "Go on" : "Pause"}
        </button>
      </Card>
      {status?.link === "refused" && invitation}
      <dl className="figures">
        <Figure label="Updates that counted" value={status?.tally.counted ?? 0} />
        <Figure label="Accuracy in training, on the rows of all who trained" value={newest?.accuracy === undefined ? "–" : percent(newest.accuracy)} />
        <Figure label="Loss there" value={newest?.loss === undefined ? "–" : score(newest.loss)} />
        <Figure label="Rows on this device" value={summary.examples + summary.held_out} />
      </dl>
      <Spark history={status?.tally.history ?? []} />
      {adding && drawable ? (
        <Own wanted={{ name: summary.name, data: summary.data, assigned: false }} before={kept} guess={guess} done={(rows) => { setAdding(false); change(rows); }} back={() => setAdding(false)} />
      ) : (
        <Card title={`Data: ${summary.name}`}>
          <p>
            {plural(summary.examples, "row")} to train on and {summary.held_out} to measure with{summary.source ? `, a part of ${summary.name} that the coordinator assigned` : "; they never leave this device"}.
          </p>
          {drawable && (
            <div className="buttons">
              <button onClick={() => setAdding(true)}>Draw more digits</button>
            </div>
          )}
        </Card>
      )}
      <Card title="When it may work">
        <Check label="Only while charging" on={rules.onlyCharging} can={knows.charging} change={(onlyCharging) => allow({ ...rules, onlyCharging })} />
        <Check label="Only on Wi-Fi" on={rules.onlyWifi} can={knows.wifi} change={(onlyWifi) => allow({ ...rules, onlyWifi })} />
      </Card>
      <div className="buttons">
        <Sure label="Leave" question="This device forgets who it is here, and its rows. It needs a new invitation to take part again." act={leave} />
      </div>
      <p className="quiet">
        Called {member.node} here; signs as <code>{addressOf(member)}</code>{status?.arithmetic === "plain" ? "; this browser has no WebAssembly SIMD, so training is slow" : ""}.
      </p>
    </>
  );
}

function Check({ label, on, can, change }: { label: string; on: boolean; can: boolean; change: (on: boolean) => void }) {
  return (
    <label className="check">
      <input type="checkbox" checked={on && can} disabled={!can} onChange={(event) => change(event.target.checked)} />
      <span>
        {label}
        {!can && <small className="quiet">This browser does not tell pages.</small>}
      </span>
    </label>
  );
}

function Spark({ history }: { history: keep.Tally["history"] }) {
  const values = history.flatMap(({ accuracy }) => (accuracy === undefined ? [] : [accuracy]));
  if (values.length < 2) return null;
  const path = values.map((value, place) => `${place ? "L" : "M"}${((100 * place) / (values.length - 1)).toFixed(2)} ${(100 - 100 * value).toFixed(2)}`).join("");
  return (
    <Card title="Accuracy, round by round">
      <svg className="spark" viewBox="0 -4 100 108" preserveAspectRatio="none" role="img" aria-label={`From ${percent(values[0]!)} to ${percent(values.at(-1)!)}`}>
        <path d={path} />
      </svg>
    </Card>
  );
}

async function kernel(): Promise<ArrayBuffer | undefined> {
  if (typeof WebAssembly === "undefined") return undefined;
  const response = await fetch("/node-kernel.wasm");
  if (!response.ok) throw new Error(`the training kernel did not come (status ${response.status}): load the page again`);
  return response.arrayBuffer();
}
