// Where a page keeps things: the browser's database, its local storage where that is denied, or else only the page itself.

/** The browser does not let pages keep anything, as in some private windows. */
export class NoStorage extends Error {
  constructor() {
    super("this browser does not let pages keep anything (a private window?): when this page is loaded again, its rows will have to be chosen again, and the device may have to join again");
  }
}

/** Something could not be kept that must be, though the browser has a place for it. */
class NotKept extends Error {
  constructor(why: DOMException | null) {
    super(`this browser cannot keep more for this page (${why?.message || "its storage is full"}): make room on the device`);
  }
}

export interface Shelf {
  get<T>(key: string): Promise<T | undefined>;
  /** Keep what `change` makes of what is kept there, for good before this returns; nothing comes between. */
  change<T>(key: string, change: (before?: T) => T): Promise<T>;
  clear(): Promise<void>;
}

/** The one for what belongs together, as a key and what was signed with it; the same as long as the page is open. */
export const shelf = (): Promise<Shelf> => (chosen ??= choose());
let chosen: Promise<Shelf> | undefined;

async function choose(): Promise<Shelf> {
  const database = new Database();
  const opens = await database.get("").then(() => true, () => false);
  return opens ? database : storable() ? new Storage() : new Page();
}

const KEPT = "kept";

export class Database implements Shelf {
  get<T>(key: string): Promise<T | undefined> {
    return this.use("readonly", (kept, done: (value?: T) => void) => {
      const asked = kept.get(key) as IDBRequest<T | undefined>;
      asked.onsuccess = () => done(asked.result);
    });
  }

  change<T>(key: string, change: (before?: T) => T): Promise<T> {
    return this.use("readwrite", (kept, done: (value: T) => void) => {
      const asked = kept.get(key) as IDBRequest<T | undefined>;
      asked.onsuccess = () => {
        const after = change(asked.result);
        kept.put(after, key);
        done(after);
      };
    });
  }

  clear(): Promise<void> {
    return this.use("readwrite", (kept) => void kept.clear());
  }

  private async use<T>(mode: IDBTransactionMode, work: (kept: IDBObjectStore, done: (value: T) => void) => void): Promise<T> {
    const database = await opened();
    return new Promise<T>((resolve, reject) => {
      const transaction = database.transaction(KEPT, mode, { durability: "strict" });
      let found: T;
      transaction.oncomplete = () => resolve(found);
      transaction.onabort = () => reject(new NotKept(transaction.error));
      work(transaction.objectStore(KEPT), (value) => (found = value));
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

const PREFIX = "tutti/";

class Storage implements Shelf {
  async get<T>(key: string): Promise<T | undefined> {
    return stored<T>(PREFIX + key);
  }

  async change<T>(key: string, change: (before?: T) => T): Promise<T> {
    const after = change(stored<T>(PREFIX + key));
    store(PREFIX + key, after);
    return after;
  }

  async clear(): Promise<void> {
    for (const key of Object.keys(localStorage)) if (key.startsWith(PREFIX)) localStorage.removeItem(key);
  }
}

class Page implements Shelf {
  private readonly its = new Map<string, unknown>();

  async get<T>(key: string): Promise<T | undefined> {
    return this.its.get(key) as T | undefined;
  }

  async change<T>(key: string, change: (before?: T) => T): Promise<T> {
    const after = change(this.its.get(key) as T | undefined);
    this.its.set(key, after);
    return after;
  }

  async clear(): Promise<void> {
    this.its.clear();
  }
}

function storable(): boolean {
  try {
    store(PREFIX, "");
    return true;
  } catch {
    return false;
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
  } catch {
    throw new NoStorage();
  }
}
