import { useState, type FormEvent } from "react";
import { everything, get, newKey, post, type Views } from "../api/client";
import { ofJobs, useResource } from "../data";
import { Link } from "../router";
import { number, plural, time } from "../ui/format";
import { Bar, Card, Copied, Empty, Field, Figure, Loaded, Trouble, may, useDoing, type Session } from "../ui/parts";

type Entry = Views["Entry"];
type LedgerView = Views["LedgerView"];

const READ_MS = 5000;
const PAGE = 50;
const JOBS = 20;

export function Ledger({ session }: { session: Session }) {
  const ledger = useResource("ledger", () => get("/api/v1/ledger"), ofJobs, READ_MS);
  return (
    <>
      <h1>Ledger</h1>
      <Loaded from={ledger}>
        {(it) => (
          <>
            <dl className="figures">
              <Figure label="Tokens minted" value={number(it.minted)} />
              <Figure label="Free" value={number(it.free)} hint="Held by accounts, to use as they like" />
              <Figure label="Owed" value={number(it.owed)} hint="Earned and not claimed yet" />
              <Figure label="Set aside" value={number(it.escrowed)} hint="In escrow for jobs" />
              <Figure label="Staked" value={number(it.staked + it.unbonding)} hint="At risk, or on its way back" />
              <Figure label="Burned" value={number(it.burned)} />
            </dl>
            <Holders ledger={it} session={session} changed={ledger.reload} />
            <Rewarded />
            {it.public_key ? (
              <>
                <Entries count={it.entries} />
                <Proofs ledger={it} />
              </>
            ) : (
              <OnChain ledger={it} />
            )}
          </>
        )}
      </Loaded>
    </>
  );
}

function Holders({ ledger, session, changed }: { ledger: LedgerView; session: Session; changed: () => void }) {
  const holders = useResource(`holders ${ledger.head}`, () => everything((after) => get("/api/v1/ledger/accounts", {}, { after, limit: 1000 })));
  const [key] = useState(newKey);
  const { busy, problem, run } = useDoing();
  const claim = (name: string) => run(() => post("/api/v1/ledger/accounts/{name}/claim", { name }, undefined, `${key}-${name}-${ledger.entries}`)).then(changed);
  return (
    <Card title="Accounts">
      {problem && <Trouble problem={problem} />}
      <Loaded from={holders}>
        {(all) =>
          all.length ? (
            <div className="scroll tall" tabIndex={0} role="region" aria-label="Accounts and what they hold">
              <table>
                <thead>
                  <tr>
                    <th scope="col">Account</th>
                    <th scope="col" className="number">Free</th>
                    <th scope="col" className="number">Owed</th>
                    <th scope="col" className="number">Staked</th>
                    <th scope="col">
                      <span className="unseen">Actions</span>
                    </th>
                  </tr>
                </thead>
                <tbody>
                  {all.map((holder) => (
                    <tr key={holder.account}>
                      <th scope="row">{holder.account}</th>
                      <td className="number">{number(holder.free)}</td>
                      <td className="number">{number(holder.owed)}</td>
                      <td className="number">{number(holder.staked + holder.unbonding)}</td>
                      <td className="number">
                        {holder.owed > 0 && may(session, "operator") && (
                          <button disabled={busy} aria-label={`Claim what is owed to ${holder.account}`} onClick={() => claim(holder.account)}>
                            Claim
                          </button>
                        )}
                      </td>
                    </tr>
                  ))}
                </tbody>
              </table>
            </div>
          ) : (
            <Empty>Nobody holds a token yet. {may(session, "admin") ? "Mint some for a sponsor, who then pays for contributions." : "An admin can mint some for a sponsor."}</Empty>
          )
        }
      </Loaded>
      {may(session, "admin") && <MintForm done={changed} />}
    </Card>
  );
}

function MintForm({ done }: { done: () => void }) {
  const [to, setTo] = useState("treasury");
  const [amount, setAmount] = useState("");
  const [key, setKey] = useState(newKey);
  const { busy, problem, run } = useDoing();
  const mint = async (event: FormEvent) => {
    event.preventDefault();
    if (await run(() => post("/api/v1/ledger/mint", {}, { to, amount: Number(amount), key }))) {
      setAmount("");
      setKey(newKey());
      done();
    }
  };
  return (
    <details>
      <summary>Mint tokens</summary>
      <form className="stack" onSubmit={mint}>
        <div className="fields">
          <Field label="To the account" hint="Jobs with rewards are paid by their sponsor, “treasury” unless they say otherwise">
            {(id, described) => <input id={id} aria-describedby={described} required value={to} onChange={(event) => setTo(event.target.value)} />}
          </Field>
          <Field label="Tokens">{(id) => <input id={id} type="number" min={1} step={1} required value={amount} onChange={(event) => setAmount(event.target.value)} />}</Field>
        </div>
        {problem && <Trouble problem={problem} />}
        <button disabled={busy}>Mint</button>
      </form>
    </details>
  );
}

/** Jobs that pay, each with its rewards. */
async function rewarded(): Promise<{ job: Views["JobView"]; rewards: Views["RewardsView"] }[]> {
  const { items } = await get("/api/v1/rewards", {}, { limit: JOBS });
  return Promise.all(items.map(async (rewards) => ({ rewards, job: await get("/api/v1/jobs/{job}", { job: rewards.job }) })));
}

/** The newest jobs that pay. */
function Rewarded() {
  const jobs = useResource("rewarded", rewarded, ofJobs, READ_MS);
  return (
    <Card title="Rewards">
      <Loaded from={jobs}>
        {(all) =>
          all.length ? (
            <div className="scroll" tabIndex={0} role="region" aria-label="Jobs with rewards">
              <table>
                <thead>
                  <tr>
                    <th scope="col">Job</th>
                    <th scope="col" className="number">Tokens a round</th>
                    <th scope="col">Sponsor</th>
                    <th scope="col">Rounds scored</th>
                    <th scope="col" className="number">Earned</th>
                    <th scope="col">State</th>
                  </tr>
                </thead>
                <tbody>
                  {all.map(({ job, rewards }) => (
                    <tr key={job.id}>
                      <th scope="row"><Link to={`/job/${job.id}`}>{job.name}</Link></th>
                      <td className="number">{number(rewards.pool)}</td>
                      <td>{rewards.sponsor}</td>
                      <td className="nowrap"><Bar share={rewards.scored.length / Math.max(1, job.rounds)} label={`Scored rounds of ${job.name}`} /> {rewards.scored.length} of {job.rounds}</td>
                      <td className="number">{number(Object.values(rewards.earned).reduce((sum, earned) => sum + earned, 0))}</td>
                      <td>{rewards.settled ? "paid" : rewards.unpaid || "under way"}</td>
                    </tr>
                  ))}
                </tbody>
              </table>
            </div>
          ) : (
            <Empty>No job pays for contributions yet: “Rewards” in a new job does.</Empty>
          )
        }
      </Loaded>
    </Card>
  );
}

/** Entries, the newest first, a page at a time: numbers have no gaps. */
function Entries({ count }: { count: number }) {
  const [back, setBack] = useState(0);
  const end = Math.max(0, count - back * PAGE);
  const start = Math.max(0, end - PAGE);
  const entries = useResource(`entries ${start} ${end}`, async () => (await get("/api/v1/ledger/entries", {}, { after: start - 1, limit: end - start || 1 })).items.reverse());
  const turn = (
    <div className="buttons">
      <button disabled={back === 0} onClick={() => setBack(back - 1)}>Newer</button>
      <button disabled={start === 0} onClick={() => setBack(back + 1)}>Older</button>
    </div>
  );
  return (
    <Card title="Entries" action={count > PAGE && turn}>
      <Loaded from={entries}>
        {(all) => (
          <div className="scroll tall" tabIndex={0} role="region" aria-label="Entries, newest first">
            <table>
              <thead>
                <tr>
                  <th scope="col" className="number">Entry</th>
                  <th scope="col">When</th>
                  <th scope="col">What</th>
                  <th scope="col">Hash</th>
                </tr>
              </thead>
              <tbody>
                {all.map((entry) => (
                  <tr key={entry.seq}>
                    <td className="number">{number(entry.seq)}</td>
                    <td className="nowrap">{time(entry.at / 1000)}</td>
                    <td className="long">{said(entry.operation)}</td>
                    <td><code title={entry.hash}>{entry.hash?.slice(0, 12)}…</code></td>
                  </tr>
                ))}
              </tbody>
            </table>
          </div>
        )}
      </Loaded>
    </Card>
  );
}

const tokens = (amount: number): string => plural(amount, "token");

/** What an entry did, in words. */
function said(it: Entry["operation"]): string {
  switch (it.type) {
    case "Found":
      return `The ledger was founded; at most ${tokens(it.cap ?? 0)} may ever be minted`;
    case "Mint":
      return `${tokens(it.amount)} minted for ${it.to}`;
    case "Transfer":
      return `${tokens(it.amount)} from ${it.source} to ${it.to}`;
    case "Stake":
      return `${it.account} staked ${tokens(it.amount)}`;
    case "Unstake":
      return `${it.account} began to take back ${tokens(it.amount)} of its stake`;
    case "Withdraw":
      return `${it.account} took what had unbonded`;
    case "Escrow":
      return `${it.payer} set ${tokens(it.amount)} aside for ${it.escrow}`;
    case "Bond":
      return `${it.account} took the job of ${it.escrow} and put up ${tokens(it.amount)} of its stake`;
    case "Release":
      return `The job of ${it.escrow} is open again, and who had taken it has its bond back`;
    case "Penalise":
      return `Who had taken the job of ${it.escrow} lost the bond: ${it.reason}`;
    case "Reward":
      return `${it.to} was paid what was set aside for ${it.escrow}`;
    case "Distribute":
      return `${tokens(Object.values(it.payments).reduce((sum, paid) => sum + paid, 0))} of ${it.escrow} owed to ${plural(Object.keys(it.payments).length, "account")}`;
    case "Claim":
      return `${it.account} took what was owed to it`;
    case "Refund":
      return `What was left of ${it.escrow} went back to who had paid it`;
  }
}

/** The tokens are on a chain, whose blocks are the entries. */
function OnChain({ ledger }: { ledger: LedgerView }) {
  return (
    <Card title="Do not take our word for it">
      <p>
        The tokens are on a chain, whose contracts hold to the rules. Of {plural(ledger.entries, "transaction")} of this coordinator the newest is <code>{ledger.head}</code>.
        What the chain has of a round, and whether an update is in it, its contract says:
      </p>
      <Copied text="tutti chain session JOB --round 1 --node NAME" label="Copy command" />
    </Card>
  );
}

function Proofs({ ledger }: { ledger: LedgerView }) {
  return (
    <Card title="Do not take our word for it">
      <p>
        Every entry names the hash of the one before and is signed. Keep these two where the coordinator cannot reach; whoever has them finds every later change, and
        entries that were cut off:
      </p>
      <div className="columns even">
        <div>
          <h3>Public key</h3>
          <Copied text={ledger.public_key} />
        </div>
        <div>
          <h3>Newest hash</h3>
          <Copied text={ledger.head} />
        </div>
      </div>
      <h3>Check all {number(ledger.entries)} entries</h3>
      <Copied text={`tutti ledger verify --key ${ledger.public_key} --head ${ledger.head}`} label="Copy command" />
    </Card>
  );
}
