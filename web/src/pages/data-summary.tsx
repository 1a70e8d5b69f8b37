// What nodes tell of their data: figures of no fewer rows than each owner allows, and never a row.
import { useState } from "react";
import { post, type Views } from "../api/client";
import { number, plural } from "../ui/format";
import { Empty, Trouble, useDoing } from "../ui/parts";

type Column = Views["ColumnView"];
type Summary = Views["PreflightView"];

/** Asks when told to: it makes every node with this data set look at its rows. `node`: show that node's alone. */
export function DataSummary({ dataset, node }: { dataset: string; node?: string }) {
  const [summary, setSummary] = useState<Summary>();
  const { busy, problem, run } = useDoing();
  const ask = () => run(async () => setSummary(await post("/api/v1/datasets/{dataset}/preflight", { dataset })));
  return (
    <div className="stack">
      {problem && <Trouble problem={problem} />}
      {!summary && (
        <div>
          <button disabled={busy} onClick={ask}>
            {busy ? "Asking…" : "Summarise the data"}
          </button>
        </div>
      )}
      {summary && (node === undefined ? <Whole summary={summary} /> : <OfNode summary={summary} name={node} />)}
    </div>
  );
}

function OfNode({ summary, name }: { summary: Summary; name: string }) {
  const found = summary.nodes.find((each) => each.node === name);
  if (!found || found.reason) return <Empty>It told nothing: {found?.reason || "it was not there when asked"}.</Empty>;
  return (
    <>
      <p>
        {plural(found.rows ?? 0, "row")}. Its owner allows figures of {found.least} rows or more; what is of fewer is not told.
      </p>
      <Classes names={summary.class_names} rows={found.classes} />
      <Columns columns={found.columns} label={`Columns of ${name}`} />
      <Remarks remarks={summary.remarks.filter((remark) => remark.startsWith(`${name}:`) || remark.startsWith(`${name} `))} />
    </>
  );
}

function Whole({ summary }: { summary: Summary }) {
  const silent = summary.nodes.filter((node) => node.reason);
  return (
    <>
      <p>
        {plural(summary.rows, "row")} on {plural(summary.nodes.length - silent.length, "node")}, added up without a row leaving its node.
      </p>
      {silent.map((node) => (
        <p key={node.node} className="quiet">{node.node} told nothing: {node.reason}</p>
      ))}
      <Classes names={summary.class_names} rows={summary.classes} />
      <Columns columns={summary.columns} label={`Columns of ${summary.dataset}`} />
      <Remarks remarks={summary.remarks} />
    </>
  );
}

function Remarks({ remarks }: { remarks: string[] }) {
  if (!remarks.length) return null;
  return (
    <>
      <h3>Worth a look</h3>
      <ul className="remarks">
        {remarks.map((remark) => (
          <li key={remark}>{remark}</li>
        ))}
      </ul>
    </>
  );
}

function Classes({ names, rows }: { names: string[]; rows: (number | null)[] }) {
  if (!rows.length) return null;
  const most = Math.max(1, ...rows.map((count) => count ?? 0));
  return (
    <ul className="classes" aria-label="Rows by class">
      {rows.map((count, index) => (
        <li key={index}>
          <span className="bar-up" aria-hidden="true">
            <span style={{ height: `${(100 * (count ?? 0)) / most}%` }} />
          </span>
          <b>{names[index] ?? index}</b>
          <small className="quiet">{count == null ? "few" : number(count)}</small>
        </li>
      ))}
    </ul>
  );
}

const SHOWN = 100;
const figure = (value: number | null | undefined): string => (value == null ? "–" : Math.abs(value) >= 1e5 || (value !== 0 && Math.abs(value) < 1e-3) ? value.toExponential(2) : String(Number(value.toPrecision(4))));

function Columns({ columns, label }: { columns: Column[]; label: string }) {
  return (
    <div className="scroll tall" tabIndex={0} role="region" aria-label={label}>
      <table>
        <thead>
          <tr>
            <th scope="col">Column</th>
            <th scope="col">Spread</th>
            <th scope="col" className="number">Mean</th>
            <th scope="col" className="number">Deviation</th>
            <th scope="col" className="number">Median</th>
            <th scope="col" className="number">Missing</th>
          </tr>
        </thead>
        <tbody>
          {columns.slice(0, SHOWN).map((column) => (
            <tr key={column.name}>
              <th scope="row">{column.name}</th>
              <td><Histogram column={column} /></td>
              <td className="number">{figure(column.mean)}</td>
              <td className="number">{figure(column.deviation)}</td>
              <td className="number">{figure(column.quantiles[2])}</td>
              <td className="number">{column.missing == null ? "few" : number(column.missing)}</td>
            </tr>
          ))}
        </tbody>
      </table>
      {columns.length > SHOWN && <p className="quiet">The first {SHOWN} of {number(columns.length)} columns.</p>}
    </div>
  );
}

const WIDTH = 120;
const HEIGHT = 26;

function Histogram({ column }: { column: Column }) {
  const bars = column.histogram;
  if (!bars.length) return <small className="quiet">too few rows</small>;
  const most = Math.max(...bars.map((bar) => bar.rows));
  const step = WIDTH / bars.length;
  return (
    <svg className="histogram" role="img" aria-label={`${column.name}, from ${figure(bars[0]!.low)} to ${figure(bars.at(-1)!.high)}`} viewBox={`0 0 ${WIDTH} ${HEIGHT}`}>
      {bars.map((bar, index) => {
        const height = Math.max(1, (HEIGHT * bar.rows) / most);
        return <rect key={index} x={index * step} y={HEIGHT - height} width={Math.max(1, step - 1)} height={height} />;
      })}
    </svg>
  );
}
