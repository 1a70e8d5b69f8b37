// Addresses: `/` is home, everything else is under `/dashboard`, and `/join` is what an invitation links to.
import { useSyncExternalStore, type AnchorHTMLAttributes, type MouseEvent } from "react";

const watchers = new Set<() => void>();
const tell = () => watchers.forEach((watcher) => watcher());
window.addEventListener("popstate", tell);

export function navigate(to: string): void {
  history.pushState("followed", "", to);
  window.scrollTo(0, 0);
  tell();
}

function watch(watcher: () => void): () => void {
  watchers.add(watcher);
  return () => void watchers.delete(watcher);
}

/** The page's path without `/dashboard`: `/`, `/job/digits-1`, `/nodes`. */
export function usePath(): string {
  return useSyncExternalStore(watch, () => location.pathname.replace(/^\/dashboard(?=\/|$)/, "") || "/");
}

export function useQuery(): URLSearchParams {
  return new URLSearchParams(useSyncExternalStore(watch, () => location.search));
}

export function href(path: string): string {
  return path === "/" ? "/" : `/dashboard${path}`;
}

export function Link({ to, ...rest }: { to: string } & AnchorHTMLAttributes<HTMLAnchorElement>) {
  const follow = (event: MouseEvent) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey || event.button !== 0) return;
    event.preventDefault();
    navigate(href(to));
  };
  return <a {...rest} href={href(to)} onClick={follow} />;
}
