import { useMemo, useState } from "react";
import { everything, get, post, remove, type Views } from "../api/client";
import { ofNodes, useResource } from "../data";
import { Link } from "../router";
import { ago, bytes, number, percent, plural } from "../ui/format";
import { Badge, Bar, Card, Dialog, Empty, Field, Figure, Loaded, Sure, Trouble, may, useDoing, type Session } from "../ui/parts";
import { VirtualTable, type Column } from "../ui/table";
import { DataSummary } from "./data-summary";

type Node = Views["NodeView"];

const READ_MS = 3000;
const stateOf = (node: Node) => (!node.connected ? "away" : node.drained ? "drained" : node.task ? "working" : "idle");

export function Nodes({ session }: { session: Session }) {
  const nodes = useResource("nodes", () => everything((after) => get("/api/v1/nodes", {}, { after, limit: 1000 })), ofNodes, READ_MS);
  const [search, setSearch] = useState("");
  const [state, setState] = useState("");
  const [chosen, choose] = useState<string>();
  const shown = useMemo(() => {
    const text = search.toLowerCase();
    return (nodes.data ?? []).filter(
      (node) => (!state || stateOf(node) === state) && (node.name.toLowerCase().includes(text) || node.dataset.toLowerCase().includes(text)),
    );
  }, [nodes.data, search, state]);
  const detail = nodes.data?.find((node) => node.name === chosen);
  return (
    <>
      <h1>Nodes</h1>
      <Loaded from={nodes}>
        {(all) =>
          all.length ? (
            <>
              <div className="filters">
                <Field label="Search by name or data set">{(id) => <input id={id} type="search" value={search} onChange={(event) => setSearch(event.target.value)} />}</Field>
                <Field label="State">
                  {(id) => (
                    <select id={id} value={state} onChange={(event) => setState(event.target.value)}>
                      <option value="">all</option>
                      {["working", "idle", "drained", "away"].map((each) => (
                        <option key={each}>{each}</option>
                      ))}
                    </select>
                  )}
                </Field>
                <p className="quiet" role="status">
                  {plural(all.filter((node) => node.connected).length, "node")} of {number(all.length)} connected, {number(shown.length)} shown
                </p>
              </div>
              <VirtualTable label="Nodes" rows={shown} columns={columns(choose)} keyOf={(node) => node.name} />
              <Datasets nodes={all} steers={may(session, "operator")} />
            </>
          ) : (
            <Empty>No node has joined yet. {may(session, "operator") && <Link to="/join">Make a join link.</Link>}</Empty>
          )
        }
      </Loaded>
      {detail && <Detail node={detail} steers={may(session, "operator")} close={() => choose(undefined)} changed={nodes.reload} />}
    </>
  );
}

/** What the connected nodes hold together. */
function Datasets({ nodes, steers }: { nodes: Node[]; steers: boolean }) {
  const held = new Map<string, Node[]>();
  for (const node of nodes) if (node.connected && node.dataset) held.set(node.dataset, [...(held.get(node.dataset) ?? []), node]);
  if (!held.size) return null;
  return (
    <Card title="Data sets">
      {[...held].sort(([a], [b]) => (a < b ? -1 : 1)).map(([name, of]) => (
        <section key={name} className="stack" aria-label={name}>
          <p>
            <b>{name}</b> <span className="quiet">{number(of.reduce((sum, node) => sum + node.examples, 0))} examples on {plural(of.length, "node")}</span>
          </p>
          {steers && <DataSummary dataset={name} />}
        </section>
      ))}
    </Card>
  );
}

function columns(choose: (name: string) => void): Column<Node>[] {
  const share = (value: number | null | undefined, label: string) => (value == null ? "–" : <><Bar share={value} label={label} /> {percent(value, 0)}</>);
  return [
    { name: "Name", width: "2 1 9rem", cell: (node) => <button className="plain name" onClick={() => choose(node.name)}>{node.name}</button> },
    { name: "State", width: "1 1 5.5rem", cell: (node) => <Badge status={stateOf(node)} /> },
    { name: "Work", width: "1.5 1 8rem", show: "middle", cell: (node) => (node.task && node.done != null ? share(node.done, `Work of ${node.name}`) : node.task || "–") },
    { name: "Data", width: "1.5 1 8rem", show: "middle", cell: (node) => (node.dataset ? <>{node.dataset} <small className="quiet">{number(node.examples)}</small></> : "–") },
    { name: "Hardware", width: "1.5 1 9rem", show: "wide", cell: (node) => (node.machine ? hardware(node.machine) : "–") },
    { name: "CPU", width: "1 1 7rem", show: "wide", cell: (node) => (node.connected ? share(node.cpu, `CPU of ${node.name}`) : "–") },
    { name: "Memory", width: "1 1 7rem", show: "wide", cell: (node) => (node.connected ? share(node.memory_used, `Memory of ${node.name}`) : "–") },
    { name: "Seen", width: "1 1 5rem", cell: (node) => (node.last_seen ? ago(node.last_seen) : "never") },
  ];
}

function hardware(machine: NonNullable<Node["machine"]>): string {
  const gpus = machine.gpus?.length ? `, ${plural(machine.gpus.length, "GPU")}` : "";
  return `${plural(machine.cpus ?? 1, "CPU")}, ${bytes(machine.memory ?? 0)}${gpus}`;
}

function Detail({ node, steers, close, changed }: { node: Node; steers: boolean; close: () => void; changed: () => void }) {
  const { busy, problem, run } = useDoing();
  const { machine, terms, data } = node;
  const toggle = () => run(() => post(node.drained ? "/api/v1/nodes/{node}/undrain" : "/api/v1/nodes/{node}/drain", { node: node.name })).then(changed);
  return (
    <Dialog title={node.name} onClose={close}>
      <dl className="figures small">
        <Figure label="State" value={<Badge status={stateOf(node)} />} />
        <Figure label="Work" value={node.task || "none"} />
        <Figure label="Last seen" value={node.last_seen ? ago(node.last_seen) : "never"} />
        <Figure label="Joined" value={ago(node.joined_at)} />
        <Figure label="Battery" value={node.battery == null ? "–" : percent(node.battery, 0)} />
      </dl>
      <h3>Data</h3>
      <p>
        {data
          ? `${node.dataset}: ${number(node.examples)} examples to train on and ${number(node.held_out)} held out, ${data.task} of ${data.shape.join("×")} into ${data.outputs}.`
          : "Not known until it connects."}{" "}
        This, and what its owner allows, is all that it tells of its data.
      </p>
      {steers && node.connected && node.dataset && <DataSummary dataset={node.dataset} node={node.name} />}
      {terms && (
        <p>
          Its owner allows jobs named {terms.jobs?.length ? terms.jobs.join(", ") : "anything"}, models {terms.models?.length ? terms.models.join(", ") : "of any kind"}, and
          cohorts of {terms.min_cohort} or more{terms.open ? "" : "; now is outside the owner's hours"}.
        </p>
      )}
      {machine && (
        <>
          <h3>Machine</h3>
          <p>
            {hardware(machine)}. {machine.platform}
            {machine.gpus?.length ? ` · ${machine.gpus.join(", ")}` : ""}
          </p>
          <p className="quiet">
            {Object.entries(machine.versions ?? {})
              .map(([name, version]) => `${name} ${version}`)
              .join(" · ")}
          </p>
        </>
      )}
      {problem && <Trouble problem={problem} />}
      {steers && (
        <footer>
          <button disabled={busy} onClick={toggle} title="A drained node finishes its work and gets no more">
            {node.drained ? "Give it work again" : "Drain"}
          </button>
          <Sure
            label="Remove"
            question={`${node.name} is sent away for good: its secret becomes void and its open work is dropped. It can come back with a new join link.`}
            act={async () => {
              await remove("/api/v1/nodes/{node}", { node: node.name });
              close();
              changed();
            }}
          />
        </footer>
      )}
    </Dialog>
  );
}
