import { useState } from "react";
import { everything, get, post, type Views } from "../api/client";
import { useResource, type Resource } from "../data";
import type { Event } from "../live";
import { ago, number, percent, plural } from "../ui/format";
import { Badge, Bar, Card, Empty, Figure, Loaded, Trouble, may, useDoing, type Session } from "../ui/parts";
import { ComputeJob } from "./compute-job";
import { AskForWork, RegisterClient, RegisterWorker } from "./market-forms";

type MarketView = Views["MarketView"];

const READ_MS = 4000;
const SHOWN = 100;
const ofMarket = (event: Event) => event.stream === "market" || event.stream.startsWith("compute:");

export function Market({ session }: { session: Session }) {
  const market = useResource("market", () => get("/api/v1/market"), ofMarket, READ_MS);
  const workers = useResource("workers", () => everything((after) => get("/api/v1/market/workers", {}, { after, limit: 1000 })), ofMarket, READ_MS);
  const clients = useResource("clients", () => everything((after) => get("/api/v1/market/clients", {}, { after, limit: 1000 })), ofMarket, READ_MS);
  const jobs = useResource("compute jobs", async () => (await get("/api/v1/market/jobs", {}, { limit: SHOWN })).items, ofMarket, READ_MS);
  const [chosen, choose] = useState<string>();
  const refresh = () => [market, workers, clients, jobs].forEach((each) => each.reload());
  const steers = may(session, "operator");
  const detail = jobs.data?.find((job) => job.job_id === chosen);
  return (
    <>
      <div className="title">
        <h1>Market</h1>
        {market.data && <Badge status={market.data.coordinating ? "coordinating" : "stopped"} />}
        <div className="buttons">
          {steers && market.data && <Control coordinating={market.data.coordinating} changed={refresh} />}
          <button onClick={refresh}>Refresh</button>
        </div>
      </div>
      <Loaded from={market}>
        {(it) => (
          <>
            <p className="quiet">Whoever needs a result pays for it, and whoever computes it is paid once it was checked: with stakes, so that cheating costs more than it brings.</p>
            <Cards market={it} />
            {steers && (
              <div className="thirds">
                <RegisterWorker market={it} done={refresh} />
                <RegisterClient admin={may(session, "admin")} done={refresh} />
                <AskForWork market={it} clients={clients.data ?? []} done={refresh} />
              </div>
            )}
          </>
        )}
      </Loaded>
      <Jobs jobs={jobs} choose={choose} />
      <Workers workers={workers} />
      <Clients clients={clients} />
      {detail && <ComputeJob job={detail} steers={steers} close={() => choose(undefined)} changed={refresh} />}
    </>
  );
}

function Cards({ market }: { market: MarketView }) {
  return (
    <dl className="figures">
      <Figure label="Workers active" value={`${number(market.workers_active)} of ${number(market.workers)}`} />
      <Figure label="Jobs" value={number(market.jobs)} />
      <Figure label="Jobs completed" value={number(market.jobs_completed)} hint="Verified and paid" />
      <Figure label="Success rate" value={market.success_rate == null ? "–" : percent(market.success_rate)} hint="Verified, of the jobs that are over" />
      <Figure label="Contract balance" value={number(market.contract_balance)} hint="Tokens in escrow" />
      <Figure label="Staked" value={number(market.staked)} hint="What workers have at risk" />
    </dl>
  );
}

/** Whether the market gives jobs to workers. */
function Control({ coordinating, changed }: { coordinating: boolean; changed: () => void }) {
  const { busy, problem, run } = useDoing();
  const [assigned, setAssigned] = useState<number>();
  const tell = (wish: "start" | "stop" | "trigger") => () =>
    run(async () => {
      const said = await post(`/api/v1/market/coordination/${wish}`);
      setAssigned(wish === "trigger" ? said.assigned : undefined);
    }).then(changed);
  return (
    <>
      {problem && <Trouble problem={problem} />}
      <span className="quiet" role="status">
        {assigned !== undefined && `${plural(assigned, "job")} assigned`}
      </span>
      <button disabled={busy} onClick={tell("trigger")}>
        Assign now
      </button>
      <button disabled={busy} className={coordinating ? "danger" : ""} onClick={tell(coordinating ? "stop" : "start")}>
        {coordinating ? "Stop coordination" : "Start coordination"}
      </button>
    </>
  );
}

function Jobs({ jobs, choose }: { jobs: Resource<Views["ComputeJobView"][]>; choose: (job: string) => void }) {
  return (
    <Card title="Compute jobs">
      <Loaded from={jobs}>
        {(all) =>
          all.length ? (
            <div className="scroll tall" tabIndex={0} role="region" aria-label="Compute jobs, newest first">
              <table>
                <thead>
                  <tr>
                    <th scope="col">Job</th>
                    <th scope="col">Status</th>
                    <th scope="col">Client</th>
                    <th scope="col" className="number">Reward</th>
                    <th scope="col">Worker</th>
                    <th scope="col">Data</th>
                    <th scope="col">Asked</th>
                    <th scope="col">Remarks</th>
                  </tr>
                </thead>
                <tbody>
                  {all.map((job) => (
                    <tr key={job.job_id}>
                      <th scope="row">
                        <button className="plain name" onClick={() => choose(job.job_id)}>
                          {job.model_type.replaceAll("_", " ")}
                        </button>{" "}
                        <small className="quiet plainly">{job.job_id}</small>
                      </th>
                      <td><Badge status={job.status} /></td>
                      <td>{job.client_address}</td>
                      <td className="number">{number(job.reward)}</td>
                      <td>{job.worker_id || "–"}</td>
                      <td className="nowrap">{number(job.rows)} × {number(job.columns)}</td>
                      <td className="nowrap">{ago(job.submitted_at)}</td>
                      <td>{job.reason || job.trouble || (job.disputed && `disputed: ${job.disputed}`)}</td>
                    </tr>
                  ))}
                </tbody>
              </table>
            </div>
          ) : (
            <Empty>Nobody has asked for work yet.</Empty>
          )
        }
      </Loaded>
    </Card>
  );
}

function Workers({ workers }: { workers: Resource<Views["WorkerView"][]> }) {
  return (
    <Card title="Workers">
      <Loaded from={workers}>
        {(all) =>
          all.length ? (
            <div className="scroll tall" tabIndex={0} role="region" aria-label="Workers by name">
              <table>
                <thead>
                  <tr>
                    <th scope="col">Worker</th>
                    <th scope="col">State</th>
                    <th scope="col">Reputation</th>
                    <th scope="col">Hardware</th>
                    <th scope="col" className="number">GFLOP/s measured</th>
                    <th scope="col" className="number">Stake</th>
                    <th scope="col" className="number">At risk</th>
                    <th scope="col" className="number">Done</th>
                    <th scope="col" className="number">Failed</th>
                    <th scope="col">Remarks</th>
                  </tr>
                </thead>
                <tbody>
                  {all.map((worker) => (
                    <tr key={worker.worker_id}>
                      <th scope="row">{worker.worker_id}</th>
                      <td><Badge status={!worker.connected ? "away" : worker.job ? "working" : "idle"} /></td>
                      <td className="nowrap"><Bar share={worker.reputation / 100} label={`Reputation of ${worker.worker_id}`} /> {worker.reputation} of 100</td>
                      <td>{worker.gpu_type || "–"}</td>
                      <td className="number">{worker.gflops ? number(Math.round(worker.gflops)) : "–"}{worker.claimed ? ` of ${number(worker.claimed)}` : ""}</td>
                      <td className="number">{number(worker.staked)}</td>
                      <td className="number">{number(worker.locked)}</td>
                      <td className="number">{number(worker.jobs_completed)}</td>
                      <td className="number">{number(worker.jobs_failed + worker.jobs_lost)}</td>
                      <td className="long">{worker.note.replaceAll("`", "")}</td>
                    </tr>
                  ))}
                </tbody>
              </table>
            </div>
          ) : (
            <Empty>No worker has registered yet.</Empty>
          )
        }
      </Loaded>
    </Card>
  );
}

function Clients({ clients }: { clients: Resource<Views["ClientView"][]> }) {
  return (
    <Card title="Clients">
      <Loaded from={clients}>
        {(all) =>
          all.length ? (
            <div className="scroll tall" tabIndex={0} role="region" aria-label="Clients by name">
              <table>
                <thead>
                  <tr>
                    <th scope="col">Client</th>
                    <th scope="col" className="number">Balance</th>
                    <th scope="col" className="number">In escrow</th>
                    <th scope="col" className="number">Jobs</th>
                    <th scope="col">Spoken for by</th>
                  </tr>
                </thead>
                <tbody>
                  {all.map((client) => (
                    <tr key={client.client_address}>
                      <th scope="row">{client.client_address}</th>
                      <td className="number">{number(client.balance)}</td>
                      <td className="number">{number(client.escrowed)}</td>
                      <td className="number">{number(client.jobs)}</td>
                      <td>{client.by}</td>
                    </tr>
                  ))}
                </tbody>
              </table>
            </div>
          ) : (
            <Empty>No client has registered yet.</Empty>
          )
        }
      </Loaded>
    </Card>
  );
}
