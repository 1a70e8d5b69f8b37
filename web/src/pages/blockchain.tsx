import { useState } from "react";
import { get, type Views } from "../api/client";
import { ofJobs, useResource } from "../data";
import { Link } from "../router";
import { number, plural, time } from "../ui/format";
import { Badge, Card, Copied, Empty, Figure, Loaded, Trouble } from "../ui/parts";

type Chain = Views["ChainView"];

const READ_MS = 5000;
const SESSIONS = 50;
const ROUNDS = 12;

export const readChain = () => get("/api/v1/blockchain/status");

/** Whether the coordinator uses a chain at all: without one there is no such page. */
export const hasChain = (chain: Chain | undefined): boolean => Object.keys(chain?.contracts ?? {}).length > 0;

export function Blockchain() {
  const chain = useResource("blockchain", readChain, ofJobs, READ_MS);
  return (
    <>
      <h1>Blockchain</h1>
      <Loaded from={chain}>
        {(it) =>
          hasChain(it) ? (
            <>
              <div className="title">
                <Badge status={it.connected ? "connected" : "failed"} />
                <span className="quiet">
                  {it.node}, chain {number(it.chain_id ?? 0)}
                  {it.connected && `, block ${number(it.block ?? 0)}`}
                </span>
              </div>
              {it.error && <Trouble problem={new Error(it.error)} retry={chain.reload} />}
              <dl className="figures">
                <Figure label="Training sessions" value={number(it.sessions ?? 0)} />
                <Figure label="Waiting to be recorded" value={number(it.waiting ?? 0)} hint="They are written when the chain answers" />
                <Figure label="Tokens minted" value={number(it.minted ?? 0)} />
                <Figure label="Owed" value={number(it.owed ?? 0)} hint="Earned and not claimed yet" />
                <Figure label="Staked" value={number(it.staked ?? 0)} />
                <Figure label="In escrow" value={number(it.escrowed ?? 0)} />
              </dl>
              {it.connected && <Sessions block={it.block ?? 0} />}
              <Contracts chain={it} />
            </>
          ) : (
            <Empty>{it.error}</Empty>
          )
        }
      </Loaded>
    </>
  );
}

function Contracts({ chain }: { chain: Chain }) {
  const listed = [...Object.entries(chain.contracts ?? {}), ...Object.entries(chain.roles ?? {})];
  return (
    <details className="card">
      <summary>Contracts and roles</summary>
      <div className="stack">
        {listed.map(([name, address]) => (
          <div key={name} className="stack">
            <h3>{name}</h3>
            <Copied text={address} />
          </div>
        ))}
      </div>
    </details>
  );
}

function Sessions({ block }: { block: number }) {
  const sessions = useResource(`sessions ${block}`, () => get("/api/v1/blockchain/sessions", {}, { limit: SESSIONS }));
  return (
    <Card title="Training sessions">
      <Loaded from={sessions}>
        {({ items }) =>
          items.length ? (
            <div className="scroll" tabIndex={0} role="region" aria-label="Sessions on the chain">
              <table>
                <thead>
                  <tr>
                    <th scope="col">Job</th>
                    <th scope="col">Opened</th>
                    <th scope="col">Closed</th>
                    <th scope="col" className="number">Rounds</th>
                    <th scope="col">Contributions of round</th>
                  </tr>
                </thead>
                <tbody>
                  {items.map((session) => (
                    <tr key={session.job}>
                      <th scope="row"><Link to={`/job/${session.job}`}>{session.job}</Link></th>
                      <td className="nowrap">{session.opened_at ? time(session.opened_at) : "–"}</td>
                      <td className="nowrap">{session.closed_at ? time(session.closed_at) : "goes on"}</td>
                      <td className="number">{session.rounds}</td>
                      <td><Rounds session={session} /></td>
                    </tr>
                  ))}
                </tbody>
              </table>
            </div>
          ) : (
            <Empty>No job has been recorded yet: the next one will be.</Empty>
          )
        }
      </Loaded>
    </Card>
  );
}

/** The newest recorded rounds, each of which shows its root. */
function Rounds({ session }: { session: Views["ChainSessionView"] }) {
  const [shown, setShown] = useState<number>();
  return (
    <>
      <div className="buttons">
        {(session.recorded ?? []).slice(-ROUNDS).map((round) => (
          <button key={round} className="plain link" aria-expanded={shown === round} onClick={() => setShown(shown === round ? undefined : round)}>
            {round}
          </button>
        ))}
      </div>
      {shown !== undefined && <Root job={session.job} round={shown} />}
    </>
  );
}

function Root({ job, round }: { job: string; round: number }) {
  const recorded = useResource(`root ${job} ${round}`, () => get("/api/v1/blockchain/sessions/{job}/rounds/{round}", { job, round }));
  return (
    <Loaded from={recorded}>
      {(it) => (
        <p className="quiet">
          {plural(it.count, "update")}, {time(it.at)}; root <code title={it.root}>{it.root.slice(0, 18)}…</code>. <code>tutti chain session {job} --round {round} --node NAME</code> proves that one is among them.
        </p>
      )}
    </Loaded>
  );
}
