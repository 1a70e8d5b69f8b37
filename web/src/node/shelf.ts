// Where a page keeps things: the browser's database or, where that is denied, only the page itself. Local storage is for
// what can be lost: without locks, which plain http does not have, two tabs write over each other there.

/** The browser does not let pages keep anything, as in some private windows. */
export class NoStorage extends Error {
  constructor() {
    super("this browser does not let pages keep anything (a private window?): when this page is loaded again, its rows will have to be chosen again, and the device may have to join again");
  }
}

/** Something could not be kept that must be, though the browser has a place for it. */
class NotKept extends Error {
  constructor(why: Error | null) {
    super(`this browser cannot keep more for this page (${why?.message || "its storage is full"}): make room on the device`);
  }
}

export interface Shelf {
  get<T>(key: string): Promise<T | undefined>;
  /**
   * Keep what `change` makes of what is kept there, and `beside`, for good before this returns; nothing comes between.
   * Where it throws, nothing is changed.
   */
  change<T, B = never>(key: string, change: (before?: T, its?: B) => T, beside?: string): Promise<T>;
  clear(): Promise<void>;
}

/** The one for what belongs together, as a key and what was signed with it; the same as long as the page is open. */
export const shelf = (): Promise<Shelf> => (chosen ??= choose());
let chosen: Promise<Shelf> | undefined;

async function choose(): Promise<Shelf> {
  const database = new Database();
  const opens = await database.get("").then(() => true, () => false);
  return opens ? database : new Page();
}

const KEPT = "kept";

export class Database implements Shelf {
  get<T>(key: string): Promise<T | undefined> {
    return this.use("readonly", (kept, done: (value?: T) => void) => {
      const asked = kept.get(key) as IDBRequest<T | undefined>;
      asked.onsuccess = () => done(asked.result);
    });
  }

  change<T, B = never>(key: string, change: (before?: T, its?: B) => T, beside = key): Promise<T> {
    return this.use("readwrite", (kept, done: (value: T) => void, refuse) => {
      const other = kept.get(beside) as IDBRequest<B | undefined>;
      const asked = kept.get(key) as IDBRequest<T | undefined>; // answered after the other
      asked.onsuccess = () => {
        try {
          const after = change(asked.result, other.result);
          kept.put(after, key);
          done(after);
        } catch (error) {
          refuse(error as Error);
        }
      };
    });
  }

  clear(): Promise<void> {
    return this.use("readwrite", (kept) => void kept.clear());
  }

  private async use<T>(mode: IDBTransactionMode, work: (kept: IDBObjectStore, done: (value: T) => void, refuse: (why: Error) => void) => void): Promise<T> {
    const database = await opened();
    return new Promise<T>((resolve, reject) => {
      const transaction = database.transaction(KEPT, mode, { durability: "strict" });
      let found: T;
      let refused: Error | undefined;
      const refuse = (why: Error) => {
        refused = why;
        transaction.abort();
      };
      transaction.oncomplete = () => resolve(found);
      transaction.onabort = () => reject(refused ?? new NotKept(transaction.error));
      work(transaction.objectStore(KEPT), (value) => (found = value), refuse);
    }).finally(() => database.close());
  }
}

function opened(): Promise<IDBDatabase> {
  return new Promise((resolve, reject) => {
    try {
      const opening = indexedDB.open("tutti-node", 1);
      opening.onupgradeneeded = () => void opening.result.createObjectStore(KEPT);
      opening.onerror = () => reject(new NoStorage());
      opening.onsuccess = () => resolve(opening.result);
    } catch {
      reject(new NoStorage());
    }
  });
}

class Page implements Shelf {
  private readonly its = new Map<string, unknown>();

  async get<T>(key: string): Promise<T | undefined> {
    return this.its.get(key) as T | undefined;
  }

  async change<T, B = never>(key: string, change: (before?: T, its?: B) => T, beside = key): Promise<T> {
    const after = change(this.its.get(key) as T | undefined, this.its.get(beside) as B | undefined);
    this.its.set(key, after);
    return after;
  }

  async clear(): Promise<void> {
    this.its.clear();
  }
}

/** In local storage, of what is small and can be lost. */
export function stored<T>(key: string): T | undefined {
  try {
    return JSON.parse(localStorage.getItem(key) ?? "null") ?? undefined;
  } catch {
    return undefined;
  }
}

export function store(key: string, value: unknown): void {
  try {
    localStorage.setItem(key, JSON.stringify(value));
  } catch (error) {
    throw error instanceof DOMException && error.name === "QuotaExceededError" ? new NotKept(error) : new NoStorage();
  }
}

export function remove(key: string): void {
  try {
    localStorage.removeItem(key);
  } catch {
    // what denies this has kept nothing
  }
}
