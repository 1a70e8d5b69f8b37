// What takes part in the market begins with: a worker, a client, a job.
import { useId, useState, type FormEvent, type ReactNode } from "react";
import { newKey, post, upload, type Views } from "../api/client";
import { Value, without, type Fields, type Schema } from "../ui/form";
import { number } from "../ui/format";
import { Card, Field, Trouble, useDoing } from "../ui/parts";

type MarketView = Views["MarketView"];

function Form({ title, action, fine, send, children }: { title: string; action: string; fine: string; send: () => Promise<unknown>; children: ReactNode }) {
  const { busy, problem, run } = useDoing();
  const [done, setDone] = useState(false);
  const submit = async (event: FormEvent) => {
    event.preventDefault();
    setDone(false);
    if (await run(send)) setDone(true);
  };
  return (
    <Card title={title}>
      <form className="stack" onSubmit={submit}>
        {children}
        {problem && <Trouble problem={problem} />}
        <p role="status" className="fine">
          {done && fine}
        </p>
        <button className="main" disabled={busy}>
          {action}
        </button>
      </form>
    </Card>
  );
}

/** The list of GPUs fills in what their makers state; what counts is measured. */
export function RegisterWorker({ market, done }: { market: MarketView; done: () => void }) {
  const [name, setName] = useState("");
  const [gpu, setGpu] = useState("");
  const [capacity, setCapacity] = useState("");
  const [stake, setStake] = useState(String(market.min_stake));
  const choose = (chosen: string) => {
    setGpu(chosen);
    setCapacity(chosen ? String(market.gpus[chosen] ?? "") : "");
  };
  const send = async () => {
    await post("/api/v1/market/workers", {}, { worker_id: name, gpu_type: gpu, compute_capacity: Number(capacity), stake_amount: Number(stake) });
    done();
  };
  return (
    <Form title="Register a worker" action="Register the worker" fine={`Registered. It works once the node ${name} joins with --worker.`} send={send}>
      <Field label="Worker" hint="The name of the node that will compute">
        {(id, described) => <input id={id} aria-describedby={described} required value={name} onChange={(event) => setName(event.target.value)} />}
      </Field>
      <Field label="GPU">
        {(id) => (
          <select id={id} value={gpu} onChange={(event) => choose(event.target.value)}>
            <option value="">not said</option>
            {Object.keys(market.gpus).map((each) => (
              <option key={each}>{each}</option>
            ))}
          </select>
        )}
      </Field>
      <Field label="Compute capacity, GFLOP/s" hint="What it claims; what counts is measured">
        {(id, described) => <input id={id} aria-describedby={described} type="number" min={0} step="any" value={capacity} onChange={(event) => setCapacity(event.target.value)} />}
      </Field>
      <Field label="Stake, tokens" hint={`${number(market.min_stake)} or more; lost in part if a result does not hold`}>
        {(id, described) => <input id={id} aria-describedby={described} type="number" min={1} required value={stake} onChange={(event) => setStake(event.target.value)} />}
      </Field>
    </Form>
  );
}

export function RegisterClient({ admin, done }: { admin: boolean; done: () => void }) {
  const [name, setName] = useState("");
  const [balance, setBalance] = useState("0");
  const send = async () => {
    await post("/api/v1/market/clients", {}, { client_address: name, initial_balance: Number(balance) });
    done();
  };
  return (
    <Form title="Register a client" action="Register the client" fine="Registered." send={send}>
      <Field label="Client">{(id) => <input id={id} required value={name} onChange={(event) => setName(event.target.value)} />}</Field>
      {admin && (
        <Field label="First balance, tokens" hint="Made once, by an admin">
          {(id, described) => <input id={id} aria-describedby={described} type="number" min={0} value={balance} onChange={(event) => setBalance(event.target.value)} />}
        </Field>
      )}
    </Form>
  );
}

export function AskForWork({ market, clients, done }: { market: MarketView; clients: Views["ClientView"][]; done: () => void }) {
  const [client, setClient] = useState("");
  const [kindName, setKind] = useState(market.kinds[0]?.name ?? "");
  const [options, setOptions] = useState<Fields>({});
  const [reward, setReward] = useState("10");
  const [replicas, setReplicas] = useState("1");
  const [file, setFile] = useState<File>();
  const [target, setTarget] = useState("");
  const [key, setKey] = useState(newKey);
  const known = useId();
  const kind = market.kinds.find((each) => each.name === kindName);
  const send = async () => {
    const data = file ? (await upload("/api/v1/market/tables", file, kind?.needs_target ? { target } : {})).data : "";
    await post("/api/v1/market/jobs", {}, { client_address: client, model_type: kindName, reward: Number(reward), replicas: Number(replicas), options: options as never, data }, key);
    setKey(newKey());
    done();
  };
  return (
    <Form title="Ask for work" action="Submit the job" fine="Submitted; its reward is in escrow." send={send}>
      <div className="fields">
        <Field label="Client">
          {(id) => (
            <>
              <input id={id} list={known} required value={client} onChange={(event) => setClient(event.target.value)} />
              <datalist id={known}>
                {clients.map((each) => (
                  <option key={each.client_address} value={each.client_address} />
                ))}
              </datalist>
            </>
          )}
        </Field>
        <Field label="Reward, tokens">{(id) => <input id={id} type="number" min={1} required value={reward} onChange={(event) => setReward(event.target.value)} />}</Field>
      </div>
      <Field label="Kind of job" hint={kind?.description.replaceAll("`", "")}>
        {(id, described) => (
          <select
            id={id}
            aria-describedby={described}
            value={kindName}
            onChange={(event) => {
              setKind(event.target.value);
              setOptions({});
            }}
          >
            {market.kinds.map((each) => (
              <option key={each.name} value={each.name}>
                {each.name.replaceAll("_", " ")}
              </option>
            ))}
          </select>
        )}
      </Field>
      <details>
        <summary>Options, data and replicas</summary>
        <div className="stack">
          <div className="fields">
            {Object.entries((kind?.options ?? {}) as Record<string, Schema>).map(([name, schema]) => (
              <Value key={name} name={name} schema={schema} value={options[name]} set={(value) => setOptions(without({ ...options, [name]: value }))} />
            ))}
            <Field label="Replicas" hint="Workers of different owners that compute the same">
              {(id, described) => <input id={id} aria-describedby={described} type="number" min={1} max={9} value={replicas} onChange={(event) => setReplicas(event.target.value)} />}
            </Field>
          </div>
          <Field label="Table" hint="CSV with names in its first line, or NPZ; without one, a bundled sample is used">
            {(id, described) => <input id={id} aria-describedby={described} type="file" accept=".csv,.npz" onChange={(event) => setFile(event.target.files?.[0])} />}
          </Field>
          {file && kind?.needs_target && <Field label="Column to predict">{(id) => <input id={id} value={target} onChange={(event) => setTarget(event.target.value)} />}</Field>}
        </div>
      </details>
    </Form>
  );
}
