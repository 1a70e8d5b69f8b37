// A job's rounds: a strip of them, and of the one that was chosen who took part, and why.
import { memo, useState } from "react";
import { get, type Views } from "../api/client";
import { ofJob, useGrowing, useResource } from "../data";
import { bytes, number, percent, plural, seconds } from "../ui/format";
import { Badge, Bar, Card, Empty, Loaded } from "../ui/parts";

const SHOWN = 300;
const ENDS = new Set(["RoundOpened", "RoundClosed", "RoundFailed", "UpdateAccepted", "UpdateRefused", "NodeDropped"]);

export function Rounds({ id }: { id: string }) {
  const [chosen, choose] = useState<number>();
  const rounds = useGrowing(
    `rounds ${id}`,
    (after) => get("/api/v1/jobs/{job}/rounds", { job: id }, { after, limit: 1000 }),
    (event) => ofJob(id)(event) && ENDS.has(event.type),
  );
  return (
    <Card title="Rounds">
      <Loaded from={rounds}>
        {(all) =>
          all.length ? (
            <>
              <div className="strip" role="group" aria-label="Rounds, oldest first">
                {all.slice(-SHOWN).map((round) => (
                  <RoundButton key={`${round.round}-${round.attempt}`} round={round} chosen={round.round === chosen} choose={choose} />
                ))}
              </div>
              {all.length > SHOWN && <p className="quiet">The latest {number(SHOWN)} of {number(all.length)}.</p>}
              <p className="legend quiet">
                <i className="closed" /> closed <i className="closed partial" /> closed without everybody <i className="failed" /> failed <i className="open" /> open
              </p>
              <Latest rounds={all} />
              {chosen !== undefined && <Why job={id} round={chosen} />}
            </>
          ) : (
            <Empty>No round has been opened yet.</Empty>
          )
        }
      </Loaded>
    </Card>
  );
}

const RoundButton = memo(function RoundButton({ round, chosen, choose }: { round: Views["RoundView"]; chosen: boolean; choose: (round: number | undefined) => void }) {
  const said = `${round.status}, ${round.reason}`;
  const partial = round.status === "closed" && round.counted < round.cohort;
  return (
    <button
      className={partial ? "closed partial" : round.status}
      aria-pressed={chosen}
      title={`${called(round)}: ${said}`}
      aria-label={`${called(round)}${round.attempt ? `, attempt ${round.attempt + 1}` : ""}: ${said}`}
      onClick={() => choose(chosen ? undefined : round.round)}
    />
  );
});

const called = (round: Views["RoundView"]): string => (round.task === "evaluate" ? "Final evaluation" : `Round ${round.round}`);

function Latest({ rounds }: { rounds: Views["RoundView"][] }) {
  const last = rounds.at(-1)!;
  const failed = rounds.filter((round) => round.status === "failed");
  return (
    <p>
      {called(last)} {last.status === "open" ? `is open: ${last.reason}` : `${last.status}: ${last.reason}`}
      {last.seconds != null && `, after ${seconds(last.seconds)}`}.
      {failed.length > 0 && ` ${plural(failed.length, "attempt")} failed, the last because of: ${failed.at(-1)!.reason}.`}
    </p>
  );
}

function Why({ job, round }: { job: string; round: number }) {
  const why = useResource(`why ${job} ${round}`, () => get("/api/v1/jobs/{job}/rounds/{round}", { job, round }), (event) => ofJob(job)(event) && event.data.round === round);
  return (
    <Loaded from={why}>
      {(it) =>
        it.attempts.map((attempt) => (
          <section className="why" key={attempt.round.attempt} aria-label={`Round ${round}, attempt ${attempt.round.attempt + 1}`}>
            <h3>
              {called(attempt.round)}
              {it.attempts.length > 1 && `, attempt ${attempt.round.attempt + 1}`} <Badge status={attempt.round.status} />
            </h3>
            <p>
              {attempt.round.reason}. Asked {plural(attempt.round.cohort, "node")}, wanted {plural(attempt.round.wanted, "update")}, needed {attempt.round.quorum}, counted {attempt.round.counted}.
            </p>
            <div className="scroll" tabIndex={0} role="region" aria-label={`Nodes in round ${round}`}>
              <table>
                <thead>
                  <tr>
                    <th scope="col">Node</th>
                    <th scope="col">Outcome</th>
                    <th scope="col">Share</th>
                    <th scope="col" className="number">Weight</th>
                    <th scope="col" className="number">Trained</th>
                    <th scope="col" className="number">Sent</th>
                    {attempt.nodes.some((part) => part.reason) && <th scope="col">Why</th>}
                  </tr>
                </thead>
                <tbody>
                  {attempt.nodes.map((part) => (
                    <tr key={part.node}>
                      <th scope="row">{part.node}</th>
                      <td><Badge status={part.outcome} /></td>
                      <td>{part.share ? <><Bar share={part.share ?? 0} label={`Share of ${part.node}`} /> {percent(part.share ?? 0)}</> : "–"}</td>
                      <td className="number">{part.weight ? number(part.weight) : "–"}</td>
                      <td className="number">{part.seconds ? seconds(part.seconds) : "–"}</td>
                      <td className="number">{part.bytes ? bytes(part.bytes) : "–"}</td>
                      {attempt.nodes.some((each) => each.reason) && <td>{part.reason}</td>}
                    </tr>
                  ))}
                </tbody>
              </table>
            </div>
            {attempt.refusals.length > 0 && (
              <>
                <h3>Refused</h3>
                <ul>
                  {attempt.refusals.map((refusal, index) => (
                    <li key={index}>
                      <b>{refusal.node}</b>: {refusal.reason}
                      {!refusal.selected && " (had not been asked)"}
                    </li>
                  ))}
                </ul>
              </>
            )}
            {Object.entries(attempt.left_out_more ?? {}).map(([reason, count]) => (
              <p key={reason} className="quiet">
                {plural(count, "further node")} left out: {reason}
              </p>
            ))}
          </section>
        ))
      }
    </Loaded>
  );
}
