// A table that draws only the rows in view, so that a thousand rows are as quick as ten.
import { useRef, useState, type ReactNode } from "react";

const ROW = 48;
const AROUND = 8;

export type Column<T> = { name: string; width: string; show?: "wide" | "middle"; cell: (row: T) => ReactNode };

export function VirtualTable<T>({ label, rows, columns, keyOf }: { label: string; rows: T[]; columns: Column<T>[]; keyOf: (row: T) => string }) {
  const box = useRef<HTMLDivElement>(null);
  const [top, setTop] = useState(0);
  const height = Math.min(rows.length * ROW, 640);
  const first = Math.max(0, Math.floor(top / ROW) - AROUND);
  const shown = rows.slice(first, Math.ceil((top + height) / ROW) + AROUND);
  const class_ = (column: Column<T>) => (column.show ? `only-${column.show}` : undefined);
  const style = (column: Column<T>) => ({ flex: column.width });
  return (
    <div className="virtual" role="table" aria-label={label} aria-rowcount={rows.length + 1}>
      <div role="rowgroup">
        <div role="row" className="row head" aria-rowindex={1}>
          {columns.map((column) => (
            <span role="columnheader" key={column.name} className={class_(column)} style={style(column)}>
              {column.name}
            </span>
          ))}
        </div>
      </div>
      <div ref={box} role="rowgroup" tabIndex={0} aria-label={`${label}, rows`} className="rows" style={{ height }} onScroll={() => setTop(box.current!.scrollTop)}>
        <div role="presentation" style={{ height: rows.length * ROW, position: "relative" }}>
          {shown.map((row, index) => (
            <div role="row" className="row" key={keyOf(row)} aria-rowindex={first + index + 2} style={{ top: (first + index) * ROW, height: ROW }}>
              {columns.map((column) => (
                <span role="cell" key={column.name} className={class_(column)} style={style(column)}>
                  {column.cell(row)}
                </span>
              ))}
            </div>
          ))}
        </div>
      </div>
    </div>
  );
}
