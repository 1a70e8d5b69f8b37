import { useState, type FormEvent } from "react";
import { get, post, remove, type Views } from "../api/client";
import { useResource } from "../data";
import { choose, chosenTheme, type Theme } from "../theme";
import { inWords } from "../ui/form";
import { time } from "../ui/format";
import { Card, Copied, Empty, Field, Figure, Loaded, Sure, Trouble, may, useDoing, type Session } from "../ui/parts";
import { MaintenanceSwitch } from "./maintenance";

const THEMES: Theme[] = ["system", "light", "dark"];

export function Settings({ session, reload }: { session: Session; reload: () => void }) {
  const config = useResource("config", () => get("/api/v1/config"));
  return (
    <>
      <h1>Settings</h1>
      <div className="columns even">
        <div>
          <You session={session} reload={reload} />
          <Appearance />
          {may(session, "admin") && <MaintenanceSwitch />}
          {session.account && <Password />}
          {session.account && <Tokens session={session} />}
        </div>
        <Card title="Coordinator">
          <Loaded from={config}>
            {(it) => (
              <>
                <dl className="figures small">
                  <Figure label="Listens on" value={`${it.host}:${it.port}`} />
                  <Figure label="Asks who calls" value={it.authentication ? "yes" : "no"} />
                </dl>
                <Defaults title="Training" values={it.training} />
                <Defaults title="Cohort" values={it.cohort} />
                <Defaults title="Evaluation" values={it.evaluation} />
                <p className="quiet">What a job gets that does not say otherwise. Each job sets its own in “New job”.</p>
              </>
            )}
          </Loaded>
        </Card>
      </div>
    </>
  );
}

function You({ session, reload }: { session: Session; reload: () => void }) {
  const out = async () => {
    await post("/auth/revoke", {}, {});
    reload();
  };
  return (
    <Card title="You" action={session.account && <button onClick={out}>Sign out</button>}>
      {session.account ? (
        <p>
          <b>{session.account.name}</b>, {session.account.role} of {session.account.organisation}
        </p>
      ) : (
        <p>You are the operator of this coordinator. {session.setup && "Nobody has to sign in here until the first account is made:"}</p>
      )}
      {session.setup && <FirstAccount done={reload} />}
    </Card>
  );
}

/** Turns authentication on. */
function FirstAccount({ done }: { done: () => void }) {
  const [name, setName] = useState("");
  const [organisation, setOrganisation] = useState("");
  const [password, setPassword] = useState("");
  const { busy, problem, run } = useDoing();
  const make = (event: FormEvent) => {
    event.preventDefault();
    void run(async () => {
      await post("/auth/signup", {}, { name, password, organisation: organisation || null });
      await post("/auth/signin", {}, { name, password, cookie: true });
      done();
    });
  };
  return (
    <form className="stack" onSubmit={make}>
      <Field label="Name or e-mail address">{(id) => <input id={id} autoComplete="username" required value={name} onChange={(event) => setName(event.target.value)} />}</Field>
      <Field label="Organisation">{(id) => <input id={id} autoComplete="organization" value={organisation} placeholder="home" onChange={(event) => setOrganisation(event.target.value)} />}</Field>
      <Field label="Password" hint="8 characters or more">
        {(id, described) => <input id={id} aria-describedby={described} type="password" autoComplete="new-password" minLength={8} required value={password} onChange={(event) => setPassword(event.target.value)} />}
      </Field>
      {problem && <Trouble problem={problem} />}
      <button className="main" disabled={busy}>
        Make the admin&apos;s account
      </button>
    </form>
  );
}

function Appearance() {
  const [theme, setTheme] = useState(chosenTheme);
  return (
    <Card title="Appearance">
      <div className="segments" role="radiogroup" aria-label="Theme">
        {THEMES.map((each) => (
          <label key={each}>
            <input
              type="radio"
              name="theme"
              checked={theme === each}
              onChange={() => {
                choose(each);
                setTheme(each);
              }}
            />
            <span>{each}</span>
          </label>
        ))}
      </div>
    </Card>
  );
}

function Password() {
  const [current, setCurrent] = useState("");
  const [fresh, setFresh] = useState("");
  const [done, setDone] = useState(false);
  const { busy, problem, run } = useDoing();
  const change = async (event: FormEvent) => {
    event.preventDefault();
    setDone(await run(() => post("/auth/password", {}, { current, new: fresh })));
    setCurrent("");
    setFresh("");
  };
  return (
    <Card title="Password">
      <form className="stack" onSubmit={change}>
        <Field label="Current password">{(id) => <input id={id} type="password" autoComplete="current-password" required value={current} onChange={(event) => setCurrent(event.target.value)} />}</Field>
        <Field label="New password" hint="8 characters or more; your other sessions end">
          {(id, described) => <input id={id} aria-describedby={described} type="password" autoComplete="new-password" minLength={8} required value={fresh} onChange={(event) => setFresh(event.target.value)} />}
        </Field>
        {problem && <Trouble problem={problem} />}
        {done && <p role="status" className="fine">Changed.</p>}
        <button disabled={busy}>Change password</button>
      </form>
    </Card>
  );
}

const ROLES = ["viewer", "operator", "admin"] as const;

function Tokens({ session }: { session: Session }) {
  const tokens = useResource("tokens", () => get("/api/v1/tokens"));
  const [label, setLabel] = useState("");
  const [role, setRole] = useState<(typeof ROLES)[number]>("viewer");
  const [days, setDays] = useState("90");
  const [issued, setIssued] = useState<Views["IssuedToken"]>();
  const { busy, problem, run } = useDoing();
  const issue = (event: FormEvent) => {
    event.preventDefault();
    void run(async () => {
      setIssued(await post("/api/v1/tokens", {}, { label, role, days: days ? Number(days) : null }));
      setLabel("");
      tokens.reload();
    });
  };
  const mine = ROLES.slice(0, ROLES.indexOf(session.role as (typeof ROLES)[number]) + 1);
  return (
    <Card title="Tokens for programs">
      <Loaded from={tokens}>
        {({ items }) =>
          items.length ? (
            <ul className="plain-list">
              {items.map((token) => (
                <li key={token.id}>
                  <span>
                    <b>{token.label}</b> {token.role}
                    <small className="quiet"> {token.expires_at ? `until ${time(token.expires_at)}` : "for ever"}</small>
                  </span>
                  <Sure label="Revoke" question={`Programs that use ${token.label} are turned away from now on.`} act={() => remove("/api/v1/tokens/{token}", { token: token.id }).then(tokens.reload)} />
                </li>
              ))}
            </ul>
          ) : (
            <Empty>None yet. The command line and scripts use them: <code>TUTTI_TOKEN=… tutti jobs ls</code></Empty>
          )
        }
      </Loaded>
      {issued && (
        <div role="status">
          <p className="fine">Copy it now, it is shown this once:</p>
          <Copied text={issued.secret} />
        </div>
      )}
      <form className="stack" onSubmit={issue}>
        <Field label="What for">{(id) => <input id={id} required maxLength={64} value={label} onChange={(event) => setLabel(event.target.value)} />}</Field>
        <div className="fields">
          <Field label="Role">
            {(id) => (
              <select id={id} value={role} onChange={(event) => setRole(event.target.value as typeof role)}>
                {mine.map((each) => (
                  <option key={each}>{each}</option>
                ))}
              </select>
            )}
          </Field>
          <Field label="Days">{(id) => <input id={id} type="number" min={1} max={3660} placeholder="for ever" value={days} onChange={(event) => setDays(event.target.value)} />}</Field>
        </div>
        {problem && <Trouble problem={problem} />}
        <button disabled={busy}>Make a token</button>
      </form>
    </Card>
  );
}

function Defaults({ title, values }: { title: string; values: object }) {
  const shown = (value: unknown) => (value == null ? "–" : typeof value === "object" ? String((value as { name?: string }).name ?? "") : String(value));
  return (
    <details>
      <summary>{title}</summary>
      <dl className="pairs">
        {Object.entries(values).map(([name, value]) => (
          <div key={name}>
            <dt>{inWords(name)}</dt>
            <dd>{shown(value)}</dd>
          </div>
        ))}
      </dl>
    </details>
  );
}
