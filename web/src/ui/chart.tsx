// The one place that knows the chart library: lines over rounds (or time), in the colours of the theme.
import { useEffect, useRef } from "react";
import uPlot from "uplot";
import "uplot/dist/uPlot.min.css";

export type Line = { label: string; values: (number | null)[]; color?: number };

type Props = {
  title: string;
  x: number[];
  lines: Line[];
  format: (value: number) => string;
  time?: boolean;
  height?: number;
  from?: number;
};

const css = (name: string) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
export const COLORS = 6;
const colorOf = (line: Line, index: number) => css(`--line-${((line.color ?? index) % COLORS) + 1}`);

export function Chart({ title, x, lines, format, time = false, height = 200, from }: Props) {
  const box = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot>(undefined);
  const latest = useRef({ x, lines, format });
  latest.current = { x, lines, format };
  const shape = `${time} ${height} ${from} ${lines.map((line) => `${line.label} ${line.color}`).join("|")}`;

  useEffect(() => {
    const element = box.current!;
    const draw = () => {
      plot.current?.destroy();
      const axis = { stroke: css("--quiet"), grid: { stroke: css("--edge"), width: 1 }, ticks: { show: false }, font: "12px system-ui, sans-serif" };
      const { lines } = latest.current;
      plot.current = new uPlot(
        {
          width: element.clientWidth || 300,
          height,
          legend: { show: lines.length > 1, live: false },
          cursor: { y: false, points: { size: 7 } },
          scales: { x: { time }, y: { range: (_, low, high) => limits(low, high, from) } },
          axes: [
            { ...axis, size: 28, ...(time ? {} : { incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000] }) },
            { ...axis, size: 58, values: (_, ticks) => ticks.map((tick) => latest.current.format(tick)) },
          ],
          series: [
            { label: time ? "time" : "round" },
            ...lines.map((line, index) => ({
              label: line.label,
              stroke: colorOf(line, index),
              width: 2,
              spanGaps: true,
              points: { show: (u: uPlot) => u.data[0].length < 30, size: 5, fill: colorOf(line, index) },
              value: (_: uPlot, value: number | null) => (value == null ? "–" : latest.current.format(value)),
            })),
          ],
          hooks: { setCursor: [(u) => tip(u, element, latest.current.format, time)] },
        },
        [latest.current.x, ...latest.current.lines.map((line) => line.values)],
        element,
      );
    };
    draw();
    const sized = new ResizeObserver(() => plot.current?.setSize({ width: element.clientWidth || 300, height }));
    sized.observe(element);
    window.addEventListener("tutti:theme", draw);
    return () => {
      sized.disconnect();
      window.removeEventListener("tutti:theme", draw);
      plot.current?.destroy();
      plot.current = undefined;
    };
  }, [shape, height, time, from]);

  useEffect(() => {
    const frame = requestAnimationFrame(() => plot.current?.setData([x, ...lines.map((line) => line.values)]));
    return () => cancelAnimationFrame(frame);
  }, [x, lines]);

  const said = lines.map((line) => {
    const last = line.values.findLast((value) => value != null);
    return `${line.label}: ${last == null ? "nothing yet" : format(last)}`;
  });
  return (
    <figure className="chart">
      <figcaption>
        {title}
        <output className="tip" aria-hidden="true" />
      </figcaption>
      <div ref={box} role="img" aria-label={`${title}, latest value. ${said.join("; ")}`} />
    </figure>
  );
}

function limits(low: number | null, high: number | null, from?: number): [number, number] {
  if (low == null || high == null) return [0, 1];
  const least = from ?? low;
  const room = (high - least || Math.abs(high) || 1) * 0.08;
  return [from ?? least - room, high + room];
}

/** What is under the cursor, beside the title. */
function tip(u: uPlot, element: HTMLElement, format: (value: number) => string, time: boolean): void {
  const output = element.parentElement?.querySelector("output");
  if (!output) return;
  const index = u.cursor.idx;
  const x = index == null ? undefined : u.data[0][index];
  if (index == null || x === undefined) {
    output.textContent = "";
    return;
  }
  const where = time ? new Date(x * 1000).toLocaleTimeString() : `round ${x}`;
  const values = u.data.slice(1).map((series) => (series[index] == null ? "–" : format(series[index]!)));
  output.textContent = `${where}: ${values.join(" · ")}`;
}
