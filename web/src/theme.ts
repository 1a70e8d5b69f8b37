// Dark or light: as the system has it, unless somebody chose.
export type Theme = "system" | "light" | "dark";

const KEY = "tutti-theme";
const dark = matchMedia("(prefers-color-scheme: dark)");

export function chosenTheme(): Theme {
  const kept = stored();
  return kept === "light" || kept === "dark" ? kept : "system";
}

export function choose(theme: Theme): void {
  if (theme === "system") localStorage.removeItem(KEY);
  else localStorage.setItem(KEY, theme);
  showTheme();
}

/** Nothing where the browser denies pages their storage. */
function stored(): string | null {
  try {
    return localStorage.getItem(KEY);
  } catch {
    return null;
  }
}

export function showTheme(): void {
  const theme = chosenTheme();
  document.documentElement.dataset.theme = theme === "system" ? (dark.matches ? "dark" : "light") : theme;
  window.dispatchEvent(new Event("tutti:theme"));
}

dark.addEventListener("change", showTheme);
