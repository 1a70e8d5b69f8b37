import { useEffect, useMemo, useRef, useState } from "react";
import { get, type Views } from "../api/client";
import { ofJobs, useResource } from "../data";
import { Link } from "../router";
import { Chart } from "../ui/chart";
import { bytes, number, percent, score, seconds } from "../ui/format";
import { Badge, Card, Empty, Figure, Loaded } from "../ui/parts";

type Now = Views["MetricsView"];
type Sample = { at: number; bytes: number; rounds: number; updates: number };

const READ_MS = 2000;
const KEPT = 150;

export function Metrics() {
  const metrics = useResource("metrics", () => get("/api/v1/metrics"), ofJobs, READ_MS);
  const samples = useSamples(metrics.data);
  const x = useMemo(() => samples.map((sample) => sample.at), [samples]);
  const traffic = useMemo(() => [{ label: "bytes a second", values: rates(samples, (sample) => sample.bytes) }], [samples]);
  const updates = useMemo(() => [{ label: "updates a second", values: rates(samples, (sample) => sample.updates), color: 1 }], [samples]);
  return (
    <>
      <h1>Metrics</h1>
      <Loaded from={metrics}>
        {(it) => (
          <>
            <dl className="figures">
              <Figure label="Rounds closed" value={number(it.rounds_completed)} />
              <Figure label="Updates accepted" value={number(it.updates_accepted)} />
              <Figure label="Updates refused" value={number(it.updates_refused)} />
              <Figure label="Bytes in" value={bytes(it.bytes_in)} />
              <Figure label="Bytes out" value={bytes(it.bytes_out)} />
              <Figure label="Nodes connected" value={number(it.nodes_connected)} />
            </dl>
            <Card title="While you watch">
              {samples.length > 2 ? (
                <div className="charts">
                <Chart title="Models and updates moved, bytes a second" x={x} lines={traffic} format={bytes} time from={0} height={150} />
                <Chart title="Updates a second" x={x} lines={updates} format={(value) => value.toFixed(1)} time from={0} height={150} />
                </div>
              ) : (
                <Empty>Looking…</Empty>
              )}
            </Card>
            <div className="columns even">
              <Durations title="Aggregation" hint="Folding a round's updates into a model" of={it.aggregation} />
              <Durations title="Training" hint="A node's training for one round" of={it.training} />
            </div>
            <Card title="Jobs">
              {it.jobs.length ? (
                <div className="scroll" tabIndex={0} role="region" aria-label="Scores of jobs">
                  <table>
                    <thead>
                      <tr>
                        <th scope="col">Job</th>
                        <th scope="col">Status</th>
                        <th scope="col" className="number">Rounds</th>
                        <th scope="col" className="number">Accuracy</th>
                        <th scope="col" className="number">Loss</th>
                      </tr>
                    </thead>
                    <tbody>
                      {it.jobs.slice(-200).reverse().map((job) => (
                        <tr key={job.job}>
                          <th scope="row"><Link to={`/job/${job.job}`}>{job.name}</Link></th>
                          <td><Badge status={job.status} /></td>
                          <td className="number">{job.rounds_done} of {job.rounds}</td>
                          <td className="number">{job.accuracy == null ? "–" : percent(job.accuracy)}</td>
                          <td className="number">{job.loss == null ? "–" : score(job.loss)}</td>
                        </tr>
                      ))}
                    </tbody>
                  </table>
                </div>
              ) : (
                <Empty>No job yet.</Empty>
              )}
            </Card>
            <p className="quiet">
              Counted since the coordinator started. Prometheus finds the same at <a href="/metrics">/metrics</a>.
            </p>
          </>
        )}
      </Loaded>
    </>
  );
}

function Durations({ title, hint, of }: { title: string; hint: string; of: Views["Durations"] }) {
  const shown = (value: number | null | undefined) => (value == null ? "–" : seconds(value));
  return (
    <Card title={title}>
      <p className="quiet">{hint}</p>
      <dl className="figures small">
        <Figure label="Times" value={number(of.count)} />
        <Figure label="Median" value={shown(of.p50)} />
        <Figure label="90 % within" value={shown(of.p90)} />
        <Figure label="99 % within" value={shown(of.p99)} />
      </dl>
    </Card>
  );
}

/** One sample for every look at the counters, the latest KEPT. */
function useSamples(now: Now | undefined): Sample[] {
  const [samples, setSamples] = useState<Sample[]>([]);
  const last = useRef(0);
  useEffect(() => {
    const at = Date.now() / 1000;
    if (!now || at - last.current < READ_MS / 2000) return;
    last.current = at;
    const sample = { at, bytes: now.bytes_in + now.bytes_out, rounds: now.rounds_completed, updates: now.updates_accepted };
    setSamples((old) => [...old.slice(1 - KEPT), sample]);
  }, [now]);
  return samples;
}

function rates(samples: Sample[], of: (sample: Sample) => number): (number | null)[] {
  return samples.map((sample, index) => {
    const before = samples[index - 1];
    return before ? Math.max(0, of(sample) - of(before)) / (sample.at - before.at) : null;
  });
}
