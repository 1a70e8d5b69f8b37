// The node: one task at a time, as long as its owner lets it work, and each task delivered once.
// Work and its result outlive a connection: the coordinator asks again, and gets the same update (services/runner.py).
import { MODELS } from "./arithmetic";
import { signed, type Tally } from "./keep";
import { FIRST_DELAY_MS, LAST_DELAY_MS, Lifeline, type Connection } from "./lifeline";
import type { Member } from "./key";
import { Lost, Refused, type Registration } from "./link";
import { batchSizeFor, Owner, type Rules } from "./owner";
import type { Failure, FromCoordinator, Place, Start, Submission, Summary } from "./protocol";
import { Trainer } from "./trainer";
import type { Data } from "./work";
import type { FromWorker } from "./worker";

export type Status = {
  link: Connection;
  arithmetic?: "simd" | "plain";
  objection?: string;
  trouble?: string;
  task?: { job: string; round: number; rounds: number; done: number; loss?: number; what: "fetching" | "training" | "sending" | "waiting" };
  tally: Tally;
};

type Held = { start: Start; outcome?: Submission | Failure; blob?: Uint8Array<ArrayBuffer>; tries: number };

const HISTORY = 100;
const MOST_TIMES = 2;
const ENDED = "the browser has ended this page again and again while it worked on this job: there may be too little memory on this device for the model; close other pages, or let the job use a smaller one";

const keyOf = (start: Start): string => [start.job, start.round, start.attempt, start.task, start.weights].join("/");

export class Runner {
  status: Status;
  private readonly lifeline: Lifeline;
  private readonly trainer: Trainer;
  private owner!: Owner;
  private held?: Held;
  private progressEvery = 5000;
  private lastProgress = 0;
  private stopped = false;
  private readonly over = new AbortController();

  constructor(
    private readonly member: Member,
    private readonly summary: Summary,
    data: Data,
    wasm: ArrayBuffer | undefined,
    before: Tally,
    private readonly tell: (status: Status) => void,
  ) {
    this.status = { link: "connecting", tally: before };
    this.trainer = new Trainer(data, wasm, { on: (said) => this.heard(said), died: (reason) => this.onDied(reason), tick: () => this.lifeline.beat(false) });
    this.lifeline = new Lifeline(
      member,
      () => this.registration(),
      () => ({ battery: this.owner.level, open: !this.owner.objection }),
      (message) => this.on(message),
      (link, why) => this.show({ link, ...(why !== undefined && { trouble: why }), ...(link === "connected" && { trouble: undefined }) }),
    );
  }

  async start(rules: () => Rules): Promise<void> {
    this.owner = await Owner.of(rules, () => this.rulesChanged(), this.over.signal);
    if (this.stopped) return;
    await this.trainer.start();
    if (this.stopped) return;
    this.show({ arithmetic: this.trainer.arithmetic, objection: this.owner.objection });
    window.addEventListener("pagehide", this.laidDown);
    this.lifeline.start();
  }

  stop(): void {
    this.stopped = true;
    this.over.abort();
    window.removeEventListener("pagehide", this.laidDown);
    this.lifeline.stop();
    this.trainer.stop();
  }

  get knows(): Owner["knows"] {
    return this.owner?.knows ?? { charging: false, wifi: false };
  }

  guess(row: Float32Array<ArrayBuffer>): Promise<Float32Array | undefined> {
    return this.trainer.guess(row);
  }

  /** The owner has changed the rules, or the device its state. */
  rulesChanged(): void {
    const objection = this.owner.objection;
    if (objection && this.held && !this.held.outcome) {
      this.fail(this.held.start, `the owner of this device does not let it work now: ${objection}`);
      void this.trainer.start();
    }
    this.show({ objection });
    this.lifeline.beat();
  }

  private registration(): Registration {
    return {
      capabilities: this.owner.capabilities(this.trainer.arithmetic ?? "plain"),
      data: this.summary,
      terms: { models: MODELS, open: !this.owner.objection },
    };
  }

  // -- what the worker says ------------------------------------------------------------------------------

  private heard(said: Extract<FromWorker, { start: Start }>): void {
    if (!this.held || keyOf(said.start) !== keyOf(this.held.start)) return;
    if (said.kind === "progress") {
      this.task({ what: "training", done: said.done, loss: said.loss });
      this.progress(said.done, said.loss);
      return;
    }
    this.laidDown();
    if (said.kind === "done") void this.hold(this.held, said.message, said.blob);
    else this.fail(said.start, said.reason);
  }

  /** Hand in what came of a task; an update is signed before. */
  private async hold(held: Held, message: Submission, blob?: Uint8Array<ArrayBuffer>): Promise<void> {
    try {
      const its = message.digest ? await signed(this.member, held.start, { digest: message.digest, samples: message.weight }) : {};
      if (this.held !== held) return;
      held.outcome = { ...message, ...its };
      held.blob = blob;
    } catch (error) {
      if (this.held === held) this.fail(held.start, (error as Error).message);
      return;
    }
    await this.deliver(held);
  }

  private onDied(reason: string): void {
    if (!this.held || this.held.outcome) return;
    this.fail(this.held.start, reason);
    void this.trainer.start();
  }

  private progress(done: number, loss?: number): void {
    if (!this.held || Date.now() - this.lastProgress < this.progressEvery) return;
    this.lastProgress = Date.now();
    const { job, round, attempt } = this.held.start;
    this.lifeline.link.say({ type: "training:progress", job, round, attempt, done, loss: Number.isFinite(loss) ? loss : undefined });
  }

  // -- what the coordinator says -----------------------------------------------------------------------

  private on(message: FromCoordinator): void {
    switch (message.type) {
      case "device:registered":
        this.progressEvery = 1000 * (message.progress ?? 5);
        break;
      case "training:start":
        this.onStart(message);
        break;
      case "training:stop":
        if (this.isFor(message)) this.release();
        break;
      case "weights:global":
        this.onModel(message);
        break;
      case "weights:verdict":
        if (message.accepted) this.onAccepted(message);
        else if (message.resend && this.held && this.isFor(message)) void this.deliver(this.held);
        else this.show({ trouble: `an update was not counted: ${message.reason}` });
        break;
      case "data:describe":
        this.lifeline.link.say({ type: "data:described", id: message.id, reason: "browsers tell no statistics of their rows" });
        break;
      case "error":
        this.show({ trouble: message.detail });
    }
  }

  private isFor(message: Place): boolean {
    const start = this.held?.start;
    return start?.job === message.job && start.round === message.round && start.attempt === message.attempt;
  }

  private onModel({ job, round, metrics }: Extract<FromCoordinator, { type: "weights:global" }>): void {
    if (metrics?.accuracy !== undefined || metrics?.loss !== undefined) {
      const { tally } = this.status;
      const history = [...tally.history, { job, round, accuracy: metrics.accuracy, loss: metrics.loss }].slice(-HISTORY);
      this.show({ tally: { ...tally, history } });
    }
    if (this.held?.start.job === job && this.held.start.round <= round) this.release();
  }

  /** An update that was handed in twice, since an answer was lost, counts once; measuring a model hands none in. */
  private onAccepted(verdict: Place): void {
    const { tally } = this.status;
    const last = `${verdict.job}/${verdict.round}`;
    if (this.isFor(verdict) && this.held?.start.task === "train" && tally.last !== last) this.show({ tally: { ...tally, counted: tally.counted + 1, last } });
  }

  private onStart(start: Start): void {
    if (this.held && keyOf(this.held.start) === keyOf(start)) {
      if (this.held.outcome) void this.deliver(this.held);
      return;
    }
    if (this.held && !this.held.outcome) this.release();
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
    const weights = await this.insist(held, () => this.lifeline.link.fetch(held.start.weights));
    if (!weights || this.held !== held) return;
    if (this.beganTooOften(held.start)) {
      this.fail(held.start, ENDED);
      return;
    }
    this.task({ what: "training", done: 0 });
    const memory = Number(this.owner.capabilities("").memory);
    this.trainer.work(held.start, weights, held.start.training.batch_size ?? batchSizeFor(memory));
  }

  private beganTooOften(start: Start): boolean {
    const { begun } = this.status.tally;
    const times = begun?.job === start.job ? begun.times + 1 : 1;
    this.show({ tally: { ...this.status.tally, begun: { job: start.job, times } } });
    return times > MOST_TIMES;
  }

  /** The work is over, or its page goes away in good order. */
  private readonly laidDown = (): void => {
    if (this.status.tally.begun) this.show({ tally: { ...this.status.tally, begun: undefined } });
  };

  private async deliver(held: Held): Promise<void> {
    if (!held.outcome) return;
    this.task({ what: "sending", done: 1 });
    const { outcome, blob } = held;
    if (outcome.type === "weights:submit" && blob) await this.insist(held, () => this.lifeline.link.deliver(outcome, blob));
    else this.lifeline.link.say(outcome);
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
    this.lifeline.link.say(outcome);
    this.show({ trouble: this.owner.objection ? undefined : reason, task: undefined }); // what the owner wants is no trouble
  }

  private release(): void {
    this.laidDown();
    if (this.held && !this.held.outcome) void this.trainer.start();
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
