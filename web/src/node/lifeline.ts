// Connected as long as the node lives: tries again after every loss, and notices when a connection is dead without a word.
import type { Member } from "./key";
import { Link, Refused, type Registration } from "./link";
import type { FromCoordinator, Registered } from "./protocol";

export const FIRST_DELAY_MS = 100;
export const LAST_DELAY_MS = 5000;
const SOON_DELAY_MS = 500; // for some five seconds: another coordinator takes over in a moment
const SOON_TRIES = 12;

export type Connection = "connecting" | "connected" | "away" | "refused";
export type Beat = { battery?: number; open: boolean };

export class Lifeline {
  readonly link: Link;
  private state: Connection = "connecting";
  private every = 15_000;
  private lastBeat = 0;
  private lastHeard = 0;
  private asking = false;
  private tries = 0;
  private retry?: number;
  private stopped = false;

  /** `changed` hears of every state, with the reason where the coordinator does not want this node. */
  constructor(
    member: Member,
    private readonly registration: () => Registration,
    private readonly pulse: () => Beat,
    private readonly hear: (message: FromCoordinator) => void,
    private readonly changed: (state: Connection, why?: string) => void,
  ) {
    this.link = new Link(member, (message) => this.on(message), (why) => this.onClosed(why));
  }

  start(): void {
    document.addEventListener("visibilitychange", this.awake);
    window.addEventListener("online", this.awake);
    this.keepScreenOn();
    this.connect();
  }

  stop(): void {
    this.stopped = true;
    clearTimeout(this.retry);
    document.removeEventListener("visibilitychange", this.awake);
    window.removeEventListener("online", this.awake);
    this.link.hangUp();
  }

  /** Tell how this node is; where a beat is not `due` yet, only if `now` is set. */
  beat(now = true): void {
    if (!this.link.open || (!now && Date.now() - this.lastBeat < this.every)) return;
    this.lastBeat = Date.now();
    this.link.say({ type: "device:heartbeat", ...this.pulse() });
    if (this.lastBeat - this.lastHeard > 2 * this.every) void this.ask();
  }

  /** Nothing was said for long: either nothing is to say, or the way is gone, which no page can tell of a WebSocket. */
  private async ask(): Promise<void> {
    if (this.asking) return;
    this.asking = true;
    const heard = await this.link.isHeard().catch(() => false);
    this.asking = false;
    if (heard) this.lastHeard = Date.now();
    else this.link.drop();
  }

  private connect(): void {
    if (this.stopped || this.link.open) return;
    clearTimeout(this.retry);
    if (this.state !== "away") this.become("connecting");
    void this.link.connect(this.registration());
  }

  private on(message: FromCoordinator): void {
    this.lastHeard = Date.now();
    if (message.type === "device:registered") this.welcome(message);
    this.hear(message);
  }

  private welcome({ heartbeat = 15 }: Registered): void {
    this.tries = 0;
    this.every = 1000 * heartbeat;
    this.beat();
    this.become("connected");
  }

  private onClosed(why: Error): void {
    if (this.stopped) return;
    if (why instanceof Refused) {
      this.become("refused", why.message);
      return;
    }
    this.become("away");
    const tries = this.tries++;
    const most = tries < SOON_TRIES ? SOON_DELAY_MS : FIRST_DELAY_MS * 2 ** (tries - SOON_TRIES + 3);
    const delay = Math.min(most, LAST_DELAY_MS, FIRST_DELAY_MS * 2 ** tries) * (0.5 + Math.random() / 2);
    this.retry = window.setTimeout(() => this.connect(), delay);
  }

  private become(state: Connection, why?: string): void {
    this.state = state;
    this.changed(state, why);
  }

  /** Back from sleep or another network: the old connection may be dead without knowing. */
  private readonly awake = (): void => {
    if (document.visibilityState === "hidden" || this.stopped || this.state === "refused") return;
    this.tries = 0;
    this.keepScreenOn();
    if (this.link.open) void this.ask();
    else this.connect();
  };

  /** A phone whose screen goes dark stops its pages. Browsers keep it on over TLS only, and while the page is seen. */
  private keepScreenOn(): void {
    navigator.wakeLock?.request("screen").catch((error: unknown) => console.info("the screen may go dark:", error));
  }
}
