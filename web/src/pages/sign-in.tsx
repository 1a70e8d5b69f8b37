import { useState, type FormEvent } from "react";
import { post, type Views } from "../api/client";
import { Logo } from "../ui/icons";
import { Card, Field, Trouble, useDoing, type Session } from "../ui/parts";

/** For strangers: sign in, or sign up; before set-up, the way to the first account. */
export function SignIn({ session, done }: { session: Session; done: () => void }) {
  const [fresh, setFresh] = useState(session.setup);
  const [name, setName] = useState("");
  const [organisation, setOrganisation] = useState("");
  const [password, setPassword] = useState("");
  const [token, setToken] = useState("");
  const { busy, problem, run } = useDoing();
  const submit = (event: FormEvent) => {
    event.preventDefault();
    void run(async () => {
      if (session.setup) await setUp(token, { name, password, organisation: organisation || null });
      else if (fresh) await post("/auth/signup", {}, { name, password });
      await post("/auth/signin", {}, { name, password, cookie: true });
      done();
    });
  };
  return (
    <main className="alone">
      <Card>
        <h1>
          <Logo /> {session.setup ? "Set up Tutti" : fresh ? "Sign up" : "Sign in"}
        </h1>
        {session.setup && <p>Make the admin&apos;s account. The operator&apos;s token shows that you may; it is in the file that <code>tutti up</code> named.</p>}
        <form className="stack" onSubmit={submit}>
          {session.setup && <Field label="Operator's token">{(id) => <input id={id} type="password" autoComplete="off" required value={token} onChange={(event) => setToken(event.target.value)} />}</Field>}
          <Field label="Name or e-mail address">{(id) => <input id={id} autoComplete="username" autoCapitalize="none" required value={name} onChange={(event) => setName(event.target.value)} />}</Field>
          {session.setup && <Field label="Organisation">{(id) => <input id={id} autoComplete="organization" value={organisation} placeholder="home" onChange={(event) => setOrganisation(event.target.value)} />}</Field>}
          <Field label="Password" hint={fresh ? "8 characters or more" : undefined}>
            {(id, described) => (
              <input id={id} aria-describedby={described} type="password" autoComplete={fresh ? "new-password" : "current-password"} minLength={fresh ? 8 : undefined} required value={password} onChange={(event) => setPassword(event.target.value)} />
            )}
          </Field>
          {problem && <Trouble problem={problem} />}
          <button className="main" disabled={busy}>
            {session.setup ? "Make the account" : fresh ? "Sign up" : "Sign in"}
          </button>
        </form>
        {!session.setup && (
          <p className="quiet">
            {fresh ? "You have an account?" : "No account yet?"}{" "}
            <button className="plain link" onClick={() => setFresh(!fresh)}>
              {fresh ? "Sign in" : "Sign up"}
            </button>
            {fresh && " An admin then gives you a role."}
          </p>
        )}
      </Card>
    </main>
  );
}

async function setUp(token: string, wish: Views["SignUp"]): Promise<void> {
  const answer = await fetch("/auth/signup", {
    method: "POST",
    headers: { "content-type": "application/json", authorization: `Bearer ${token.trim()}` },
    body: JSON.stringify(wish),
  });
  if (!answer.ok) throw new Error(((await answer.json()) as { detail: string }).detail);
}

/** For people without a role. */
export function Waiting({ session, done }: { session: Session; done: () => void }) {
  return (
    <main className="alone">
      <Card>
        <h1>
          <Logo /> Almost there
        </h1>
        <p>
          <b>{session.name}</b> has an account, and no role yet. Ask an admin of {session.account?.organisation} for one.
        </p>
        <div className="buttons">
          <button className="main" onClick={done}>
            Look again
          </button>
          <button onClick={() => post("/auth/revoke", {}, {}).then(done)}>Sign out</button>
        </div>
      </Card>
    </main>
  );
}
