export function bytes(value: number): string {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  while (value >= 1000 && unit < units.length - 1) {
    value /= 1000;
    unit++;
  }
  return `${unit && value < 100 ? value.toFixed(1) : Math.round(value)} ${units[unit]}`;
}

export function seconds(value: number): string {
  if (value === 0) return "0 s";
  if (value < 0.1) return `${(value * 1000).toFixed(value < 0.01 ? 1 : 0)} ms`;
  if (value < 90) return `${value.toFixed(value < 10 ? 1 : 0)} s`;
  if (value < 5400) return `${Math.round(value / 60)} min`;
  if (value < 129_600) return `${(value / 3600).toFixed(1)} h`;
  return `${Math.round(value / 86_400)} d`;
}

export function ago(at: number, now = Date.now() / 1000): string {
  const passed = now - at;
  return passed < 5 ? "just now" : `${seconds(passed)} ago`;
}

export function time(at: number): string {
  return new Date(at * 1000).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "medium" });
}

export const percent = (share: number, digits = 1): string => `${(share * 100).toFixed(digits)} %`;

export const number = (value: number): string => value.toLocaleString("en-GB");

export function score(value: number): string {
  return Math.abs(value) >= 1000 ? value.toPrecision(4) : value.toFixed(4).replace(/0{1,2}$/, "");
}

export const plural = (count: number, one: string, many = `${one}s`): string => `${number(count)} ${count === 1 ? one : many}`;

/** A list for people: `a, b and c`. */
export function list(names: string[], most = 4): string {
  const shown = names.length > most ? [...names.slice(0, most - 1), `${names.length - most + 1} more`] : names;
  return shown.length < 2 ? (shown[0] ?? "") : `${shown.slice(0, -1).join(", ")} and ${shown.at(-1)}`;
}
