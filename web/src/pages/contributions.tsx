// What nodes gave to a job, what of it was not used and why, and what they earned by it.
import { useState } from "react";
import { everything, get, url } from "../api/client";
import { ofJob, useResource, useTail } from "../data";
import { bytes, number, percent, plural, seconds, time } from "../ui/format";
import { Badge, Bar, Card, Empty, Figure, Loaded } from "../ui/parts";

export function Contributions({ id }: { id: string }) {
  const read = () => everything((after) => get("/api/v1/contributions", {}, { job: id, after, limit: 1000 }));
  const given = useResource(`given ${id}`, read, (event) => ofJob(id)(event) && event.type === "RoundClosed");
  return (
    <Card title="Contributions">
      <Loaded from={given}>
        {(all) =>
          all.length ? (
            <div className="scroll" tabIndex={0} role="region" aria-label="Contributions by node">
              <table>
                <thead>
                  <tr>
                    <th scope="col">Node</th>
                    <th scope="col">Share of all weight</th>
                    <th scope="col" className="number">Updates</th>
                    <th scope="col" className="number">Weight</th>
                    <th scope="col" className="number">Trained for</th>
                    <th scope="col" className="number">Sent</th>
                  </tr>
                </thead>
                <tbody>
                  {[...all].sort((a, b) => b.share - a.share).slice(0, 200).map((part) => (
                    <tr key={part.node}>
                      <th scope="row">{part.node}</th>
                      <td><Bar share={part.share} label={`Share of ${part.node}`} /> {percent(part.share)}</td>
                      <td className="number">{number(part.updates)}</td>
                      <td className="number">{number(part.weight)}</td>
                      <td className="number">{seconds(part.seconds)}</td>
                      <td className="number">{bytes(part.bytes)}</td>
                    </tr>
                  ))}
                </tbody>
              </table>
              {all.length > 200 && <p className="quiet">The 200 largest of {number(all.length)}.</p>}
            </div>
          ) : (
            <Empty>No update has been counted yet.</Empty>
          )
        }
      </Loaded>
    </Card>
  );
}

const EXCLUSIONS: Record<string, string> = { UpdateRefused: "refused", UpdateLost: "lost", NodeDropped: "dropped" };
const SHOWN = 200;

/** Updates that did not count, and nodes that a round went on without. */
export function Excluded({ id }: { id: string }) {
  const excluded = useTail(
    `excluded ${id}`,
    (after) => get("/api/v1/events", {}, { stream: `job:${id}`, type: Object.keys(EXCLUSIONS), after, limit: 1000 }),
    (event) => event.offset,
    (event) => ofJob(id)(event) && event.type in EXCLUSIONS,
  );
  return (
    <Card title="Excluded updates">
      <Loaded from={excluded}>
        {(all) =>
          all.length ? (
            <div className="scroll tall" tabIndex={0} role="region" aria-label="Excluded updates, newest first">
              <table>
                <thead>
                  <tr>
                    <th scope="col">Node</th>
                    <th scope="col" className="number">Round</th>
                    <th scope="col">Outcome</th>
                    <th scope="col">Why</th>
                    <th scope="col">When</th>
                  </tr>
                </thead>
                <tbody>
                  {all.slice(-SHOWN).reverse().map((event) => (
                    <tr key={event.offset}>
                      <th scope="row">{String(event.data.node)}</th>
                      <td className="number">{String(event.data.round)}</td>
                      <td><Badge status={EXCLUSIONS[event.type]!} /></td>
                      <td className="long">{String(event.data.reason)}</td>
                      <td className="nowrap">{time(event.at)}</td>
                    </tr>
                  ))}
                </tbody>
              </table>
              {all.length > SHOWN && <p className="quiet">The latest {number(SHOWN)} of {number(all.length)}.</p>}
            </div>
          ) : (
            <Empty>None: every update that was sent counted.</Empty>
          )
        }
      </Loaded>
    </Card>
  );
}

const ofRewards = (job: string) => (event: { type: string; data: Record<string, unknown> }) =>
  ["ContributionsScored", "RewardsSettled"].includes(event.type) && event.data.job === job;

/** What the nodes of a job that pays have earned, and why. */
export function Earned({ id }: { id: string }) {
  const rewards = useResource(`rewards ${id}`, () => get("/api/v1/jobs/{job}/rewards", { job: id }), ofRewards(id), 10_000);
  const [chosen, choose] = useState<number>();
  return (
    <Card title="Rewards">
      <Loaded from={rewards}>
        {(it) => {
          const round = chosen ?? it.scored.at(-1);
          const most = Math.max(1, ...Object.values(it.earned));
          return (
            <>
              <p>
                {plural(it.pool, "token")} a round from {it.sponsor}, by what each update did for the model.{" "}
                {it.settled ? "All rounds are paid." : it.unpaid || (it.waiting.length ? `${plural(it.waiting.length, "round waits", "rounds wait")} to be scored.` : "")}
              </p>
              {it.scored.length === 0 && <Empty>No round has been scored yet.</Empty>}
              <dl className="earned">
                {Object.entries(it.earned)
                  .sort((a, b) => b[1] - a[1])
                  .map(([node, earned]) => (
                    <div key={node}>
                      <dt>{node}</dt>
                      <dd><Bar share={earned / most} label={`Earnings of ${node}`} /> {number(earned)}</dd>
                    </div>
                  ))}
              </dl>
              {round !== undefined && (
                <label className="inline">
                  Why, in round{" "}
                  <select value={round} onChange={(event) => choose(Number(event.target.value))}>
                    {it.scored.map((each) => (
                      <option key={each}>{each}</option>
                    ))}
                  </select>
                </label>
              )}
              {round !== undefined && <WhyEarned job={id} round={round} />}
            </>
          );
        }}
      </Loaded>
    </Card>
  );
}

const WHOLE = 1e9;

function WhyEarned({ job, round }: { job: string; round: number }) {
  const scored = useResource(`scored ${job} ${round}`, () => get("/api/v1/jobs/{job}/rewards/{round}", { job, round }));
  return (
    <Loaded from={scored}>
      {(it) => (
        <>
          {it.note && <p className="quiet">{it.note}</p>}
          <ul className="whys" aria-label={`Why each node earned what it did in round ${round}`}>
            {it.earned.map(({ contribution: one, why }) => (
              <li key={one.node}>
                <p>{why}.</p>
                <dl className="figures small four">
                  <Figure label="Earned" value={number(one.payment ?? 0)} />
                  <Figure label="Gain" value={percent((one.gain ?? 0) / WHOLE)} hint="Its part of what the round gained" />
                  <Figure label="By the audit" value={one.audit == null ? "not audited" : percent(one.audit / WHOLE)} />
                  <Figure label="Standing" value={percent((one.standing ?? 0) / WHOLE)} hint="A moving average of its scores" />
                </dl>
                <a href={url("/api/v1/jobs/{job}/rewards/{round}/proof/{node}", { job, round, node: one.node })} download={`proof-${job}-${round}-${one.node}.json`}>
                  Download the proof
                </a>
              </li>
            ))}
          </ul>
          <p className="quiet">
            Measured on {it.data}; the records&apos; root <code>{it.root.slice(0, 16)}…</code> stands in the ledger beside the payments.
          </p>
        </>
      )}
    </Loaded>
  );
}
