// The way to the coordinator: one WebSocket for messages, HTTP for models and updates by digest.
import { identityOf, proof, publicOf, type Challenge, type Member } from "./key";
import { attach, MAX_ATTACHED, PROTOCOL, read, type FromCoordinator, type FromNode, type Registered, type Summary } from "./protocol";

export type Registration = { capabilities: Record<string, unknown>; data: Summary; terms: Record<string, unknown> };

const STALL_MS = 30_000;
/** What a visitor can do about it, where the coordinator's words are for operators. */
const WORDS: Record<string, string> = {
  replaced: "this device takes part in another tab or window: go on there, or close it and load this page again",
  protocol: "this page is of another version than the coordinator: load it again",
};

/** The coordinator does not want this node, and says why. */
export class Refused extends Error {}
export class Lost extends Error {}

/** Have this device's key taken in, with the token of a join link; the same request again gives the same answer. */
export async function join(token: string, member: Member): Promise<void> {
  const body = JSON.stringify({ node: member.node, token, secret: identityOf(member) });
  const response = await fetch("/api/v1/nodes", { method: "POST", headers: { "content-type": "application/json" }, body, signal: AbortSignal.timeout(STALL_MS) });
  if (!response.ok) throw new Refused(await detailOf(response));
}

type Asked = Omit<RequestInit, "headers"> & { headers?: Record<string, string> };

/** A request that shows who sends it. Where the coordinator was started anew meanwhile, it wants another proof: once more, then. */
export async function ask(member: Member, path: string, { method = "GET", headers, ...rest }: Asked = {}): Promise<Response> {
  const use = `${method} ${decodeURIComponent(path)}`;
  const send = async () => fetch(path, { ...rest, method, headers: { ...headers, authorization: `Bearer ${member.node}:${await proved(member, use)}` } });
  const response = await send();
  if (response.status !== 401) return response;
  challenged = undefined;
  return send();
}

let challenged: { asked: Challenge; at: number } | undefined;
let newest = { challenge: "", now: 0 };

async function proved(member: Member, use: string): Promise<string> {
  const { asked, at } = (challenged ??= await challenge());
  const last = asked.challenge === newest.challenge ? newest.now : 0;
  newest = { ...asked, now: Math.max(Math.floor(asked.now + performance.now() - at), last + 1) };
  return proof(member, newest, use);
}

/** What proofs must bear, until the coordinator is started anew; its time, for this device's clock may be wrong. */
async function challenge(): Promise<{ asked: Challenge; at: number }> {
  const at = performance.now();
  const response = await fetch("/api/v1/browser/challenge", { cache: "no-store", signal: AbortSignal.timeout(STALL_MS) });
  if (response.status === 404) throw new Refused(WORDS.protocol);
  if (!response.ok) throw new Lost(await detailOf(response));
  return { asked: (await response.json()) as Challenge, at };
}

export async function detailOf(response: Response): Promise<string> {
  try {
    return ((await response.json()) as { detail: string }).detail;
  } catch {
    return `the coordinator answered with status ${response.status}`;
  }
}

export class Link {
  private socket?: WebSocket;
  private attempts = 0;
  private taken = 0; // bytes that the coordinator takes with a message
  private cameAlong?: { digest: string; blob: Uint8Array };
  private readonly partial = new Map<string, Uint8Array[]>();

  constructor(
    private readonly member: Member,
    private readonly hear: (message: FromCoordinator) => void,
    private readonly closed: (why: Error) => void,
  ) {}

  get open(): boolean {
    return this.socket?.readyState === WebSocket.OPEN;
  }

  /** Connect and register; what comes then is heard, until `closed` is called once. An attempt under way is given up. */
  async connect(registration: Registration): Promise<void> {
    this.hangUp();
    const attempt = this.attempts;
    challenged = undefined;
    let token: string;
    try {
      token = await proved(this.member, "device:register");
    } catch (error) {
      if (attempt === this.attempts) this.closed(error instanceof Refused ? error : new Lost("the coordinator cannot be reached"));
      return;
    }
    if (attempt !== this.attempts) return; // given up meanwhile
    const socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/ws/node`);
    socket.binaryType = "arraybuffer";
    this.socket = socket;
    let refused: Error | undefined;
    const stalled = setTimeout(() => socket.close(), STALL_MS);
    socket.onopen = () => socket.send(JSON.stringify({ type: "device:register", protocol: PROTOCOL, node: this.member.node, token, key: publicOf(this.member), attached: MAX_ATTACHED, ...registration }));
    socket.onmessage = ({ data }: MessageEvent<string | ArrayBuffer>) => {
      clearTimeout(stalled);
      const { message, blob } = read(data);
      if (message.type === "device:registered") this.taken = (message as Registered).attached ?? 0;
      if (message.type === "error" && message.fatal) refused = new Refused(WORDS[message.code] ?? message.detail);
      if (message.type === "training:start" && blob) this.cameAlong = { digest: message.weights, blob };
      this.hear(message);
    };
    socket.onclose = () => {
      clearTimeout(stalled);
      if (this.socket !== socket) return;
      this.socket = undefined;
      this.closed(refused ?? new Lost("the connection to the coordinator is lost"));
    };
  }

  /** Give this connection up, as when the device has slept: it may be dead without knowing. `closed` is called. */
  drop(): void {
    if (this.hangUp()) this.closed(new Lost("connecting again"));
  }

  /** End it without a word; whether there was one. The coordinator expects this node back, unless its page goes away. */
  hangUp(): boolean {
    this.attempts++;
    const socket = this.socket;
    this.socket = undefined;
    if (!socket) return false;
    socket.onopen = socket.onmessage = socket.onclose = null;
    socket.close();
    return true;
  }

  say(message: FromNode): void {
    if (this.open) this.socket!.send(JSON.stringify(message));
  }

  /** Whether the coordinator still has this connection. */
  async isHeard(): Promise<boolean> {
    const response = await ask(this.member, "/api/v1/browser/here", { signal: AbortSignal.timeout(STALL_MS / 3) });
    return response.status !== 409;
  }

  /** Hand in an update: with the message if it is small, else stored before. */
  async deliver(message: FromNode & { digest: string }, blob: Uint8Array<ArrayBuffer>): Promise<void> {
    if (blob.length <= this.taken && this.open) {
      this.socket!.send(attach(message, blob));
      return;
    }
    await this.store(message.digest, blob);
    this.say(message);
  }

  /** A model by its digest; one that was interrupted goes on where it stopped. */
  async fetch(digest: string): Promise<Uint8Array> {
    if (this.cameAlong?.digest === digest) return this.cameAlong.blob;
    const pieces = this.partial.get(digest) ?? [];
    this.partial.clear();
    this.partial.set(digest, pieces);
    const have = pieces.reduce((sum, piece) => sum + piece.length, 0);
    const response = await this.request("GET", digest, have ? { range: `bytes=${have}-` } : {});
    if ([200, 416].includes(response.status)) pieces.length = 0; // from the beginning, also where nothing was left to come
    if (!response.ok) throw await failureOf(response);
    const reader = response.body!.getReader();
    for (;;) {
      const { done, value } = await within(reader.read());
      if (done) break;
      pieces.push(value);
    }
    this.partial.delete(digest);
    return new Uint8Array(await new Blob(pieces as Uint8Array<ArrayBuffer>[]).arrayBuffer());
  }

  private async store(digest: string, blob: Uint8Array<ArrayBuffer>): Promise<void> {
    const there = await this.request("HEAD", digest);
    if (there.status === 200) return;
    const offset = there.status === 204 ? Number(there.headers.get("upload-offset") ?? 0) : 0;
    const headers = { "upload-offset": String(offset), "upload-length": String(blob.length) };
    const response = await this.request("PUT", digest, headers, blob.subarray(offset));
    if (!response.ok) throw await failureOf(response);
  }

  private async request(method: string, digest: string, headers: Record<string, string> = {}, body?: Uint8Array<ArrayBuffer>): Promise<Response> {
    const response = await ask(this.member, `/api/v1/blobs/${digest}`, { method, headers, body, signal: body ? undefined : AbortSignal.timeout(10 * STALL_MS) });
    if (response.status === 401 || response.status === 403) throw new Refused(await detailOf(response));
    return response;
  }
}

/** Whether it is worth another try. */
async function failureOf(response: Response): Promise<Error> {
  const later = response.status >= 500 || [408, 416, 429].includes(response.status) || response.headers.has("upload-offset");
  return later ? new Lost(await detailOf(response)) : new Refused(await detailOf(response));
}

function within<T>(promise: Promise<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new Lost("nothing came for 30 s")), STALL_MS);
    promise.then(resolve, reject).finally(() => clearTimeout(timer));
  });
}
