// One WebSocket for the whole page. Every event has an offset; a connection that comes back asks for what followed the
// last one, so a closed lid leaves no gap.
import { useEffect, useRef, useSyncExternalStore } from "react";
import { get, type Views } from "./api/client";

export type Event = Views["EventView"];
export type Link = "connecting" | "connected" | "reconnecting";

const WAITS = [200, 500, 1000, 2000, 5000];
const LOOK_MS = 10_000;
const TOO_FAR_BEHIND = 5000; // events; beyond, everything is read afresh instead
const RECENT = 50;

class Live {
  link: Link = "connecting";
  recent: Event[] = [];
  private offset = -1;
  private socket: WebSocket | null = null;
  private tries = 0;
  private retry = 0;
  private look = 0;
  private on = false;
  private hearers = new Set<(event: Event | null) => void>();
  private watchers = new Set<() => void>();

  start(): void {
    if (this.on) return;
    this.on = true;
    void this.connect();
    this.look = window.setInterval(() => void this.check(), LOOK_MS);
    document.addEventListener("visibilitychange", this.wake);
    window.addEventListener("online", this.wake);
  }

  stop(): void {
    this.on = false;
    window.clearInterval(this.look);
    window.clearTimeout(this.retry);
    document.removeEventListener("visibilitychange", this.wake);
    window.removeEventListener("online", this.wake);
    this.socket?.close();
    this.socket = null;
    this.offset = -1;
  }

  /** Hears of every event; of null when so much was missed that everything should be read again. */
  hear(hearer: (event: Event | null) => void): () => void {
    this.hearers.add(hearer);
    return () => void this.hearers.delete(hearer);
  }

  watch = (watcher: () => void): (() => void) => {
    this.watchers.add(watcher);
    return () => void this.watchers.delete(watcher);
  };

  private wake = (): void => {
    if (document.visibilityState !== "visible") return;
    if (!this.socket) void this.connect();
    else void this.check();
  };

  private async connect(): Promise<void> {
    window.clearTimeout(this.retry);
    if (this.socket || !this.on) return;
    try {
      const newest = (await get("/api/v1/status")).offset;
      if (this.socket || !this.on) return;
      if (this.offset < 0 || newest - this.offset > TOO_FAR_BEHIND || newest < this.offset) {
        if (this.offset >= 0) this.tell(null);
        this.recent = (await get("/api/v1/events", {}, { after: Math.max(0, newest - RECENT), limit: RECENT })).items.reverse();
        this.offset = newest;
      }
    } catch {
      this.lost();
      return;
    }
    if (this.socket || !this.on) return;
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    const socket = (this.socket = new WebSocket(`${scheme}://${location.host}/ws?after=${this.offset}`));
    socket.onopen = () => {
      this.tries = 0;
      this.become("connected");
    };
    socket.onmessage = (message) => {
      const event = JSON.parse(String(message.data)) as Event;
      this.offset = event.offset;
      this.recent = [event, ...this.recent].slice(0, RECENT);
      this.tell(event);
    };
    socket.onclose = () => {
      if (this.socket === socket) {
        this.socket = null;
        this.lost();
      }
    };
  }

  private lost(): void {
    if (!this.on) return;
    this.become("reconnecting");
    const wait = WAITS[Math.min(this.tries++, WAITS.length - 1)]!;
    this.retry = window.setTimeout(() => void this.connect(), wait * (0.75 + Math.random() / 2));
  }

  /** A socket can be dead without knowing it: then others see events that we do not. */
  private async check(): Promise<void> {
    if (!this.socket || document.visibilityState !== "visible") return;
    const seen = this.offset;
    try {
      const newest = (await get("/api/v1/status")).offset;
      if (newest <= this.offset || this.offset > seen) return;
      await new Promise((resolve) => setTimeout(resolve, 1000));
      if (this.offset > seen) return;
    } catch {
      // then the connection is tested by making it anew
    }
    this.socket?.close();
    this.socket = null;
    this.lost();
  }

  private become(link: Link): void {
    this.link = link;
    this.watchers.forEach((watcher) => watcher());
  }

  private tell(event: Event | null): void {
    this.hearers.forEach((hearer) => hearer(event));
    this.watchers.forEach((watcher) => watcher());
  }
}

export const live = new Live();

export function useLink(): Link {
  return useSyncExternalStore(live.watch, () => live.link);
}

export function useRecent(): Event[] {
  return useSyncExternalStore(live.watch, () => live.recent);
}

/** Calls back, a few times a second at most, after events that matter. */
export function useEvents(matters: (event: Event) => boolean, then: () => void, pause = 250): void {
  const latest = useRef({ matters, then });
  latest.current = { matters, then };
  useEffect(() => {
    let waiting = 0;
    const stop = live.hear((event) => {
      if (waiting || (event && !latest.current.matters(event))) return;
      waiting = window.setTimeout(() => {
        waiting = 0;
        latest.current.then();
      }, pause);
    });
    return () => {
      stop();
      window.clearTimeout(waiting);
    };
  }, [pause]);
}
