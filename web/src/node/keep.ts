// What the page remembers on this device: who it is here, its owner's rules, and the rows it trains on.
import type { Summary } from "./protocol";
import type { Member } from "./key";
import { RULES, type Rules } from "./owner";
import type { Data } from "./work";

/** The browser does not let pages keep anything, as in some private windows. */
export class NoStorage extends Error {
  constructor() {
    super("this browser does not let pages keep anything (a private window?): the device will have to join again next time");
  }
}

export type Kept = { summary: Summary; data: Data };

/**
 * What this device has done so far: how many of its updates counted, the newest of them, and the models it heard of;
 * and the job of a task that it has begun, with how often it began without an end: a browser that ends a page for lack of
 * memory says nothing.
 */
export type Tally = { counted: number; last: string; begun?: { job: string; times: number }; history: { job: string; round: number; accuracy?: number; loss?: number }[] };

const MEMBER = "tutti-key";
const OWNER = "tutti-owner";
const TALLY = "tutti-tally";

export function member(): Member | undefined {
  return stored<Member>(MEMBER);
}

export function remember(member: Member): void {
  store(MEMBER, member);
}

export function rules(): Rules {
  return { ...RULES, ...stored<Rules>(OWNER) };
}

export function setRules(rules: Rules): void {
  store(OWNER, rules);
}

export function tally(): Tally {
  return stored<Tally>(TALLY) ?? { counted: 0, last: "", history: [] };
}

export function setTally(tally: Tally): void {
  store(TALLY, tally);
}

function stored<T>(key: string): T | undefined {
  try {
    return JSON.parse(localStorage.getItem(key) ?? "null") ?? undefined;
  } catch {
    return undefined;
  }
}

function store(key: string, value: unknown): void {
  try {
    localStorage.setItem(key, JSON.stringify(value));
  } catch {
    throw new NoStorage();
  }
}

/** Forget everything: who this device was, and its rows. */
export async function forget(): Promise<void> {
  localStorage.removeItem(MEMBER);
  localStorage.removeItem(TALLY);
  await within("readwrite", (rows) => rows.clear());
}

export function rows(): Promise<Kept | undefined> {
  return within<Kept | undefined>("readonly", (rows) => rows.get("data"));
}

export async function keepRows(kept: Kept): Promise<void> {
  await within("readwrite", (rows) => rows.put(kept, "data"));
}

function within<T>(mode: IDBTransactionMode, use: (rows: IDBObjectStore) => IDBRequest): Promise<T> {
  return new Promise((resolve, reject) => {
    let opening: IDBOpenDBRequest;
    try {
      opening = indexedDB.open("tutti", 1);
    } catch {
      reject(new NoStorage());
      return;
    }
    opening.onupgradeneeded = () => opening.result.createObjectStore("rows");
    opening.onerror = () => reject(new NoStorage());
    opening.onsuccess = () => {
      const request = use(opening.result.transaction("rows", mode).objectStore("rows"));
      request.onsuccess = () => resolve(request.result as T);
      request.onerror = () => reject(new NoStorage());
    };
  });
}
