// What a page shows, read from the API and kept fresh by events and, where there are none, by the clock.
import { useCallback, useEffect, useRef, useState } from "react";
import { Problem, everything, get, type Views } from "./api/client";
import { useEvents, type Event } from "./live";

export type Resource<T> = { data: T | undefined; problem: Problem | undefined; reload: () => void };

const NEVER = () => false;

/** `key` says what is read: another key reads anew. `on`: the events after which to read again; `every`: milliseconds. */
export function useResource<T>(key: string, read: () => Promise<T>, on: (event: Event) => boolean = NEVER, every = 0): Resource<T> {
  const [state, setState] = useState<{ key: string; data?: T; problem?: Problem }>({ key });
  const latest = useRef(read);
  latest.current = read;
  const turn = useRef(0);
  const reload = useCallback(() => {
    const mine = ++turn.current;
    latest.current().then(
      (data) => mine === turn.current && setState({ key, data }),
      (error: unknown) => {
        const problem = error instanceof Problem ? error : new Problem(0, String(error));
        if (mine === turn.current) setState((old) => ({ key, data: old.key === key ? old.data : undefined, problem }));
      },
    );
  }, [key]);
  useEffect(reload, [reload]);
  useEvents(on, reload);
  useEffect(() => {
    if (!every) return;
    const timer = window.setInterval(() => document.visibilityState === "visible" && reload(), every);
    return () => window.clearInterval(timer);
  }, [every, reload]);
  const mine = state.key === key;
  return { data: mine ? state.data : undefined, problem: mine ? state.problem : undefined, reload };
}

export const ofJob = (job: string) => (event: Event) => event.stream === `job:${job}`;
export const ofJobs = (event: Event) => event.stream.startsWith("job:");
export const ofNodes = (event: Event) => event.stream === "nodes";

/** The coordinator in one look, as fresh as its events. */
export const useStatus = (): Resource<Views["StatusView"]> => useResource("status", () => get("/api/v1/status"), (event) => ofJobs(event) || ofNodes(event), 5000);

/** A list that only grows at its end: what is new is read, and again the last few, which may still change. */
export function useGrowing<T>(key: string, page: (after: string) => Promise<{ items: T[]; next?: string | null }>, on: (event: Event) => boolean): Resource<T[]> {
  const known = useRef<{ key: string; items: T[] }>({ key, items: [] });
  const read = async () => {
    const kept = known.current.key === key ? known.current.items : [];
    const from = Math.max(0, kept.length - CHANGING);
    const fresh = await everything(page, from ? String(from) : "");
    const items = [...kept.slice(0, from), ...fresh];
    known.current = { key, items };
    return items;
  };
  return useResource(key, read, on);
}

const CHANGING = 3;

/** A list whose items never change and whose cursors are the items' own: only what is new is read. */
export function useTail<T>(key: string, page: (after: string) => Promise<{ items: T[]; next?: string | null }>, cursor: (item: T) => number, on: (event: Event) => boolean): Resource<T[]> {
  const known = useRef<{ key: string; items: T[] }>({ key, items: [] });
  const read = async () => {
    const kept = known.current.key === key ? known.current.items : [];
    const last = kept.at(-1);
    const items = [...kept, ...(await everything(page, last ? String(cursor(last)) : "0"))];
    known.current = { key, items };
    return items;
  };
  return useResource(key, read, on);
}

const MARKS = new Set(["RoundClosed", "ModelEvaluated", "JobInitialised", "JobCompleted"]);

/** The points of a job's history. */
export function usePoints(job: string): Resource<Views["MetricPoint"][]> {
  return useGrowing(
    `points ${job}`,
    (after) => get("/api/v1/jobs/{job}/metrics", { job }, { after, limit: 1000 }),
    (event) => ofJob(job)(event) && MARKS.has(event.type),
  );
}
