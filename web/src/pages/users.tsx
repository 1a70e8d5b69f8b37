import { useState, type FormEvent } from "react";
import { everything, get, patch, post, remove, url, type Views } from "../api/client";
import { useResource } from "../data";
import { Link } from "../router";
import { time } from "../ui/format";
import { Badge, Card, Dialog, Empty, Field, Loaded, Sure, Trouble, useDoing, type Session } from "../ui/parts";

type Account = Views["AccountView"];
type Role = Account["role"];

const ROLES: [Role, string][] = [
  ["", "none yet"],
  ["viewer", "viewer"],
  ["operator", "operator"],
  ["admin", "admin"],
];

export function Users({ session }: { session: Session }) {
  const accounts = useResource("accounts", () => everything((after) => get("/api/v1/accounts", {}, { after, limit: 1000 })));
  return (
    <>
      <h1>Users</h1>
      {session.setup ? (
        <Card title="Accounts">
          <Empty>Nobody has an account, and nobody has to sign in. <Link to="/settings">Make the admin&apos;s account</Link> to change that.</Empty>
        </Card>
      ) : (
        <>
          <Card title="Accounts">
            <p className="quiet">Viewers look, operators steer jobs and nodes, admins look after accounts.</p>
            <Loaded from={accounts}>{(all) => <Accounts all={all} me={session.name} changed={accounts.reload} />}</Loaded>
          </Card>
          <Add host={session.host} done={accounts.reload} />
        </>
      )}
      <Audit />
    </>
  );
}

function Accounts({ all, me, changed }: { all: Account[]; me: string; changed: () => void }) {
  const { busy, problem, run } = useDoing();
  const change = (account: Account, wish: Views["AccountChange"]) => run(() => patch("/api/v1/accounts/{account}", { account: account.name }, wish)).then(changed);
  return (
    <>
      {problem && <Trouble problem={problem} />}
      <div className="scroll" tabIndex={0} role="region" aria-label="Accounts and roles">
        <table>
          <thead>
            <tr>
              <th scope="col">Name</th>
              <th scope="col">Organisation</th>
              <th scope="col">Role</th>
              <th scope="col">Since</th>
              <th scope="col">
                <span className="unseen">Actions</span>
              </th>
            </tr>
          </thead>
          <tbody>
            {all.map((account) => (
              <tr key={account.name}>
                <th scope="row">
                  {account.name} {account.disabled && <Badge status="disabled" />} {!account.role && <Badge status="waits" />}
                </th>
                <td>
                  {account.organisation}
                  {account.host && <small className="quiet"> host</small>}
                </td>
                <td>
                  <select aria-label={`Role of ${account.name}`} value={account.role} disabled={busy} onChange={(event) => change(account, { role: event.target.value as Role })}>
                    {ROLES.map(([role, label]) => (
                      <option key={role} value={role}>
                        {label}
                      </option>
                    ))}
                  </select>
                </td>
                <td className="nowrap">{time(account.created_at)}</td>
                <td>
                  {account.name !== me && (
                    <div className="buttons">
                      <button disabled={busy} onClick={() => change(account, { disabled: !account.disabled })}>
                        {account.disabled ? "Let in" : "Lock out"}
                      </button>
                      <NewPassword account={account} set={(password) => patch("/api/v1/accounts/{account}", { account: account.name }, { password })} />
                      <Sure label="Remove" question={`${account.name} loses the account with its sessions and tokens. What it did stays in the audit log.`} act={() => remove("/api/v1/accounts/{account}", { account: account.name }).then(changed)} />
                    </div>
                  )}
                </td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </>
  );
}

/** For who has forgotten theirs. */
function NewPassword({ account, set }: { account: Account; set: (password: string) => Promise<unknown> }) {
  const [asking, setAsking] = useState(false);
  const [password, setPassword] = useState("");
  const { busy, problem, run } = useDoing();
  const close = () => {
    setAsking(false);
    setPassword("");
  };
  const send = async (event: FormEvent) => {
    event.preventDefault();
    if (await run(() => set(password))) close();
  };
  return (
    <>
      <button aria-label={`New password for ${account.name}`} onClick={() => setAsking(true)}>
        New password
      </button>
      {asking && (
        <Dialog title={`A new password for ${account.name}`} onClose={close}>
          <form className="stack" onSubmit={send}>
            <Field label="Password" hint="8 characters or more; sessions and tokens of the account end">
              {(id, described) => <input id={id} aria-describedby={described} type="password" autoComplete="new-password" minLength={8} required value={password} onChange={(event) => setPassword(event.target.value)} />}
            </Field>
            {problem && <Trouble problem={problem} />}
            <button className="main" disabled={busy}>
              Set the password
            </button>
          </form>
        </Dialog>
      )}
    </>
  );
}

function Add({ host, done }: { host: boolean; done: () => void }) {
  const [name, setName] = useState("");
  const [organisation, setOrganisation] = useState("");
  const [password, setPassword] = useState("");
  const [role, setRole] = useState<Role>("viewer");
  const { busy, problem, run } = useDoing();
  const add = async (event: FormEvent) => {
    event.preventDefault();
    if (await run(() => post("/auth/signup", {}, { name, password, role, organisation: organisation || null }))) {
      setName("");
      setPassword("");
      done();
    }
  };
  return (
    <details className="card">
      <summary>Add an account</summary>
      <form className="stack" onSubmit={add}>
        <div className="fields">
          <Field label="Name or e-mail address">{(id) => <input id={id} autoComplete="off" required value={name} onChange={(event) => setName(event.target.value)} />}</Field>
          <Field label="First password" hint="8 characters or more; they can change it">
            {(id, described) => <input id={id} aria-describedby={described} type="password" autoComplete="new-password" minLength={8} required value={password} onChange={(event) => setPassword(event.target.value)} />}
          </Field>
          <Field label="Role">
            {(id) => (
              <select id={id} value={role} onChange={(event) => setRole(event.target.value as Role)}>
                {ROLES.slice(1).map(([each, label]) => (
                  <option key={each} value={each}>
                    {label}
                  </option>
                ))}
              </select>
            )}
          </Field>
          {host && <Field label="Organisation">{(id) => <input id={id} placeholder="yours" value={organisation} onChange={(event) => setOrganisation(event.target.value)} />}</Field>}
        </div>
        {problem && <Trouble problem={problem} />}
        <button disabled={busy}>Add the account</button>
      </form>
    </details>
  );
}

const SHOWN = 100;

/** What the target says that the action and the name have not said. */
function beyond({ action, target, who }: Views["AuditEntry"]): string {
  const path = action.slice(action.indexOf(" ") + 1);
  if (target === path || target === who) return "";
  return target.startsWith(`${path}: `) ? target.slice(path.length + 2) : target;
}

function Audit() {
  const audit = useResource("audit", () => get("/api/v1/audit", {}, { newest: true, limit: SHOWN }));
  const links = (
    <div className="buttons">
      <a className="button" href={url("/api/v1/audit/export", {}, { format: "csv" })} download>
        Export CSV
      </a>
      <a className="button" href={url("/api/v1/audit/export", {}, { format: "jsonl" })} download>
        JSON
      </a>
    </div>
  );
  return (
    <Card title="Audit log" action={links}>
      <Loaded from={audit}>
        {({ items }) =>
          items.length ? (
            <div className="scroll tall" tabIndex={0} role="region" aria-label="Audit log, newest first">
              <table>
                <thead>
                  <tr>
                    <th scope="col">When</th>
                    <th scope="col">Who</th>
                    <th scope="col">What</th>
                    <th scope="col">Outcome</th>
                    <th scope="col">From</th>
                  </tr>
                </thead>
                <tbody>
                  {items.map(({ number, entry }) => (
                    <tr key={number}>
                      <td className="nowrap">{time(entry.at)}</td>
                      <td>{entry.who}</td>
                      <td>
                        <code>{entry.action}</code> <small className="quiet">{beyond(entry)}</small>
                      </td>
                      <td><Badge status={entry.outcome < 400 ? "done" : "refused"} /></td>
                      <td>{entry.origin}</td>
                    </tr>
                  ))}
                </tbody>
              </table>
            </div>
          ) : (
            <Empty>Nobody has done anything yet.</Empty>
          )
        }
      </Loaded>
    </Card>
  );
}
