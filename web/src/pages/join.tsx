import qrcode from "qrcode-generator";
import { useMemo, useState, type FormEvent } from "react";
import { newKey, post, type Views } from "../api/client";
import { plural, seconds } from "../ui/format";
import { Card, Copied, Field, Trouble, useDoing } from "../ui/parts";

const DAYS: [string, number][] = [
  ["1 hour", 1 / 24],
  ["1 day", 1],
  ["7 days", 7],
  ["30 days", 30],
];
const DATA: [string, string][] = [
  ["A CSV file", "csv:path=mine.csv,target=outcome"],
  ["Part of the bundled digits", "digits:part=0/2"],
  ["A folder of images", "images:path=scans"],
];

const quote = (text: string): string => `'${text.replaceAll("'", "'\\''")}'`;
export const command = (link: string, data: string): string => `tutti join ${quote(link)} --data ${data}`;

export function Join() {
  const [uses, setUses] = useState("1");
  const [days, setDays] = useState(1);
  const [data, setData] = useState(DATA[0]![1]);
  const [made, setMade] = useState<Views["Invitation"]>();
  const { busy, problem, run } = useDoing();
  const make = (event: FormEvent) => {
    event.preventDefault();
    void run(async () => setMade(await post("/api/v1/invites", {}, { uses: Number(uses), seconds: days * 86_400 }, newKey())));
  };
  return (
    <>
      <h1>Join</h1>
      <div className="columns even">
        <Card title="Invite nodes">
          <p>A node runs where the data are and only connects outwards; rows never leave it.</p>
          <form onSubmit={make} className="stack">
            <Field label="How many nodes">{(id) => <input id={id} type="number" min={1} max={100_000} required value={uses} onChange={(event) => setUses(event.target.value)} />}</Field>
            <Field label="Good for">
              {(id) => (
                <select id={id} value={days} onChange={(event) => setDays(Number(event.target.value))}>
                  {DAYS.map(([label, value]) => (
                    <option key={label} value={value}>
                      {label}
                    </option>
                  ))}
                </select>
              )}
            </Field>
            <Field label="What the node trains on">
              {(id) => (
                <select id={id} value={data} onChange={(event) => setData(event.target.value)}>
                  {DATA.map(([label, value]) => (
                    <option key={label} value={value}>
                      {label}
                    </option>
                  ))}
                </select>
              )}
            </Field>
            {problem && <Trouble problem={problem} />}
            <button className="main" disabled={busy}>
              Make a join link
            </button>
          </form>
        </Card>
        {made && (
          <Card title="Join link">
            <p className="quiet">
              For {plural(made.uses, "node")}, within {seconds(made.expires_in)}. It is shown this once.
            </p>
            <Copied text={made.link} label="Copy link" />
            <h3>Run this where the data are</h3>
            <Copied text={command(made.link, data)} label="Copy command" />
            <h3>Or scan this with a phone, which then trains in its browser</h3>
            <Code text={made.link} />
          </Card>
        )}
      </div>
    </>
  );
}

function Code({ text }: { text: string }) {
  const code = useMemo(() => {
    const made = qrcode(0, "M");
    made.addData(text);
    made.make();
    const size = made.getModuleCount();
    let path = "";
    for (let y = 0; y < size; y++) for (let x = 0; x < size; x++) if (made.isDark(y, x)) path += `M${x} ${y}h1v1h-1z`;
    return { size, path };
  }, [text]);
  return (
    <svg className="qr" role="img" aria-label="QR code of the join link" viewBox={`-4 -4 ${code.size + 8} ${code.size + 8}`} shapeRendering="crispEdges">
      <rect x="-4" y="-4" width="100%" height="100%" fill="#fff" />
      <path d={code.path} fill="#000" />
    </svg>
  );
}
