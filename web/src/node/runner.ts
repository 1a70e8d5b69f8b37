// The node: connected as long as its owner lets it be, one task at a time, each task delivered once.
// Work and its result outlive a connection: the coordinator asks again, and gets the same update (services/runner.py).
import { Link, Lost, Refused, type Member } from "./link";
import { batchSizeFor, Owner, type Rules } from "./owner";
import { MODELS } from "./arithmetic";
import type { Failure, FromCoordinator, Metrics, Start, Submission, Summary } from "./protocol";
import type { FromWorker, ToWorker } from "./worker";
import type { Data } from "./work";

export type Status = {
  link: "connecting" | "connected" | "away" | "refused";
  arithmetic?: "simd" | "plain";
  objection?: string;
  trouble?: string;
  task?: { job: string; round: number; rounds: number; done: number; loss?: number; what: "fetching" | "training" | "sending" | "waiting" };
  counted: number;
  lastMetrics?: Metrics;
  history: { job: string; round: number; accuracy?: number; loss?: number }[];
};

type Held = { start: Start; outcome?: Submission | Failure; blob?: Uint8Array<ArrayBuffer>; tries: number };

const FIRST_DELAY_MS = 100;
const LAST_DELAY_MS = 5000;
const SOON_DELAY_MS = 500; // for some five seconds: another coordinator takes over in a moment
const SOON_TRIES = 12;
const HISTORY = 100;

const keyOf = (start: Start): string => [start.job, start.round, start.attempt, start.task, start.weights].join("/");

export class Runner {
  status: Status = { link: "connecting", counted: 0, history: [] };
  private readonly link: Link;
  private worker?: Worker;
  private owner!: Owner;
  private held?: Held;
  private every = 15_000;
  private progressEvery = 5000;
  private lastProgress = 0;
  private lastBeat = 0;
  private tries = 0;
  private retry?: number;
  private stopped = false;
  private readonly over = new AbortController();
  private readonly guesses = new Map<number, (scores?: Float32Array) => void>();

  constructor(
    member: Member,
    private readonly summary: Summary,
    private readonly data: Data,
    private readonly wasm: ArrayBuffer | undefined,
    private readonly tell: (status: Status) => void,
  ) {
    this.link = new Link(member, (message) => this.on(message), (why) => this.onClosed(why));
  }

  async start(rules: () => Rules): Promise<void> {
    this.owner = await Owner.of(rules, () => this.rulesChanged(), this.over.signal);
    if (this.stopped) return;
    await this.startWorker();
    if (this.stopped) return;
    document.addEventListener("visibilitychange", this.awake);
    window.addEventListener("online", this.awake);
    this.keepScreenOn();
    this.rulesChanged();
    this.connect();
  }

  /** Leave for good: the coordinator does not wait. */
  stop(): void {
    this.stopped = true;
    clearTimeout(this.retry);
    document.removeEventListener("visibilitychange", this.awake);
    window.removeEventListener("online", this.awake);
    this.over.abort();
    this.link.leave();
    this.worker?.terminate();
  }

  get knows(): Owner["knows"] {
    return this.owner?.knows ?? { charging: false, wifi: false };
  }

  /** The owner has changed the rules, or the device its state. */
  rulesChanged(): void {
    const objection = this.owner.objection;
    if (objection && this.held && !this.held.outcome) {
      this.fail(this.held.start, `the owner of this device does not let it work now: ${objection}`);
      void this.restartWorker();
    }
    this.show({ objection });
    this.beat();
  }

  /** What the newest model here makes of a row; nothing before the first task. */
  async guess(x: Float32Array<ArrayBuffer>): Promise<Float32Array | undefined> {
    const id = Math.random();
    const answer = new Promise<Float32Array | undefined>((resolve) => this.guesses.set(id, resolve));
    this.ask({ kind: "guess", id, x });
    return answer.finally(() => this.guesses.delete(id));
  }

  // -- the worker --------------------------------------------------------------------------------------

  private startWorker(): Promise<void> {
    const worker = (this.worker = new Worker(new URL("./worker.ts", import.meta.url), { type: "module" }));
    return new Promise((resolve, reject) => {
      worker.onerror = (event) => {
        const reason = event.message || "the training worker died";
        reject(new Error(reason));
        if (worker === this.worker && this.held && !this.held.outcome) {
          this.fail(this.held.start, reason);
          void this.restartWorker();
        }
      };
      worker.onmessage = ({ data }: MessageEvent<FromWorker>) => {
        if (Date.now() - this.lastBeat >= this.every) this.beat();
        if (data.kind === "ready") {
          this.show({ arithmetic: data.arithmetic });
          resolve();
        } else this.heard(data);
      };
      this.ask({ kind: "prepare", wasm: this.wasm });
      this.ask({ kind: "data", data: this.data });
    });
  }

  /** The only way to stop a training that nobody wants any more. */
  private async restartWorker(): Promise<void> {
    this.worker?.terminate();
    this.guesses.forEach((resolve) => resolve());
    await this.startWorker();
  }

  private ask(message: ToWorker): void {
    this.worker!.postMessage(message);
  }

  private heard(said: FromWorker): void {
    if (said.kind === "guess") this.guesses.get(said.id)?.(said.scores);
    if (said.kind === "guess" || said.kind === "ready" || said.kind === "tick" || !this.held || keyOf(said.start) !== keyOf(this.held.start)) return;
    if (said.kind === "progress") {
      this.task({ what: "training", done: said.done, loss: said.loss });
      this.progress(said.done, said.loss);
    } else if (said.kind === "done") {
      this.held.outcome = said.message;
      this.held.blob = said.blob;
      void this.deliver(this.held);
    } else this.fail(said.start, said.reason);
  }

  // -- the connection ----------------------------------------------------------------------------------

  private connect(): void {
    if (this.stopped || this.link.open) return;
    clearTimeout(this.retry);
    this.show({ link: this.status.link === "away" ? "away" : "connecting" });
    this.link.connect({
      capabilities: this.owner.capabilities(this.status.arithmetic ?? "plain"),
      data: this.summary,
      terms: { models: MODELS, open: !this.owner.objection },
    });
  }

  private onClosed(why: Error): void {
    if (this.stopped) return;
    if (why instanceof Refused) {
      this.show({ link: "refused", trouble: why.message });
      return;
    }
    this.show({ link: "away" });
    this.retry = window.setTimeout(() => this.connect(), this.delay());
  }

  private delay(): number {
    const tries = this.tries++;
    const most = tries < SOON_TRIES ? SOON_DELAY_MS : FIRST_DELAY_MS * 2 ** (tries - SOON_TRIES + 3);
    return Math.min(most, LAST_DELAY_MS, FIRST_DELAY_MS * 2 ** tries) * (0.5 + Math.random() / 2);
  }

  /** Back from sleep or another network: the old connection may be dead without knowing. */
  private readonly awake = (): void => {
    if (document.visibilityState === "hidden" || this.stopped || this.status.link === "refused") return;
    this.tries = 0;
    this.keepScreenOn();
    if (this.link.open && Date.now() - this.lastBeat > 2 * this.every) this.link.drop();
    else if (!this.link.open) this.connect();
  };

  /** A phone whose screen goes dark stops its pages. Browsers keep it on over TLS only, and while the page is seen. */
  private keepScreenOn(): void {
    navigator.wakeLock?.request("screen").catch((error: unknown) => console.info("the screen may go dark:", error));
  }

  private beat(): void {
    if (!this.link.open) return;
    this.lastBeat = Date.now();
    this.link.say({ type: "device:heartbeat", battery: this.owner.level, open: !this.owner.objection });
  }

  private progress(done: number, loss?: number): void {
    if (!this.held || Date.now() - this.lastProgress < this.progressEvery) return;
    this.lastProgress = Date.now();
    const { job, round, attempt } = this.held.start;
    this.link.say({ type: "training:progress", job, round, attempt, done, loss: Number.isFinite(loss) ? loss : undefined });
  }

  // -- what the coordinator says -----------------------------------------------------------------------

  private on(message: FromCoordinator): void {
    switch (message.type) {
      case "device:registered":
        this.tries = 0;
        this.every = 1000 * (message.heartbeat ?? 15);
        this.progressEvery = 1000 * (message.progress ?? 5);
            this.beat();
        this.show({ link: "connected", trouble: undefined });
        break;
      case "training:start":
        this.onStart(message);
        break;
      case "training:stop":
        if (this.isFor(message)) this.release();
        break;
      case "weights:global":
        if (message.metrics?.accuracy !== undefined || message.metrics?.loss !== undefined) {
          const history = [...this.status.history, { job: message.job, round: message.round, accuracy: message.metrics.accuracy, loss: message.metrics.loss }].slice(-HISTORY);
          this.show({ history, lastMetrics: message.metrics });
        }
        if (this.held?.start.job === message.job && this.held.start.round <= message.round) this.release();
        break;
      case "weights:verdict":
        if (message.accepted) this.show({ counted: this.status.counted + (this.isFor(message) ? 1 : 0) });
        else if (message.resend && this.held && this.isFor(message)) void this.deliver(this.held);
        else this.show({ trouble: `an update was not counted: ${message.reason}` });
        break;
      case "data:describe":
        this.link.say({ type: "data:described", id: message.id, reason: "browsers tell no statistics of their rows" });
        break;
      case "error":
        this.show({ trouble: message.detail });
    }
  }

  private isFor(message: { job: string; round: number; attempt: number }): boolean {
    const start = this.held?.start;
    return start?.job === message.job && start.round === message.round && start.attempt === message.attempt;
  }

  private onStart(start: Start): void {
    if (this.held && keyOf(this.held.start) === keyOf(start)) {
      if (this.held.outcome) void this.deliver(this.held);
      return;
    }
    const busy = this.held && !this.held.outcome;
    if (busy) this.release();
    this.held = { start, tries: 0 };
    this.show({ trouble: undefined });
    if (this.owner.objection) {
      this.fail(start, `the owner of this device does not let it work now: ${this.owner.objection}`);
      return;
    }
    void this.begin(this.held);
  }

  private async begin(held: Held): Promise<void> {
    this.task({ what: "fetching", done: 0 });
    const weights = await this.insist(held, () => this.link.fetch(held.start.weights));
    if (!weights || this.held !== held) return;
    this.task({ what: "training", done: 0 });
    const memory = Number(this.owner.capabilities("").memory);
    this.ask({ kind: "work", start: held.start, weights, batchSize: held.start.training.batch_size ?? batchSizeFor(memory) });
  }

  private async deliver(held: Held): Promise<void> {
    if (!held.outcome) return;
    this.task({ what: "sending", done: 1 });
    const { outcome, blob } = held;
    if (outcome.type === "weights:submit" && blob) await this.insist(held, () => this.link.deliver(outcome, blob));
    else this.link.say(outcome);
    if (this.held === held) this.task({ what: "waiting", done: 1 });
  }

  /** Try again while the task is wanted; nothing if it is not any more. */
  private async insist<T>(held: Held, attempt: () => Promise<T>): Promise<T | undefined> {
    while (this.held === held && !this.stopped) {
      try {
        return await attempt();
      } catch (error) {
        if (error instanceof Refused) {
          this.show({ trouble: error.message });
          return undefined;
        }
        if (!(error instanceof Lost || error instanceof TypeError || error instanceof DOMException)) throw error;
        held.tries++;
        await new Promise((resolve) => setTimeout(resolve, Math.min(LAST_DELAY_MS, FIRST_DELAY_MS * 2 ** held.tries)));
      }
    }
    return undefined;
  }

  private fail(start: Start, reason: string): void {
    const { job, round, attempt } = start;
    const outcome: Failure = { type: "training:failed", job, round, attempt, reason: reason.slice(0, 500) };
    if (this.held && keyOf(this.held.start) === keyOf(start)) this.held.outcome = outcome;
    this.link.say(outcome);
    this.show({ trouble: this.owner.objection ? undefined : reason, task: undefined }); // what the owner wants is no trouble
  }

  private release(): void {
    if (this.held && !this.held.outcome) void this.restartWorker();
    this.held = undefined;
    this.show({ task: undefined });
  }

  private task(change: Pick<NonNullable<Status["task"]>, "what" | "done"> & { loss?: number }): void {
    if (!this.held) return;
    const { name, round, rounds } = this.held.start;
    this.show({ task: { job: name, round, rounds, ...change } });
  }

  private show(change: Partial<Status>): void {
    this.status = { ...this.status, ...change };
    this.tell(this.status);
  }
}
