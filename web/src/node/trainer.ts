// The training worker, as the page sees it: told what to do, and ended when nobody wants its work any more.
import type { Arithmetic } from "./arithmetic";
import type { Start } from "./protocol";
import type { Data } from "./work";
import type { FromWorker, ToWorker } from "./worker";

/** What becomes of a task; `tick` comes every second, for workers' clocks go on where nobody looks at the page. */
export type Heard = { on: (said: Extract<FromWorker, { start: Start }>) => void; died: (reason: string) => void; tick: () => void };

export class Trainer {
  arithmetic?: Arithmetic["kind"];
  private worker?: Worker;
  private readonly guesses = new Map<number, (scores?: Float32Array) => void>();

  constructor(
    private readonly data: Data,
    private readonly wasm: ArrayBuffer | undefined,
    private readonly heard: Heard,
  ) {}

  /** Ready to be told of work; also the only way to stop a training that nobody wants any more. */
  async start(): Promise<void> {
    this.stop();
    const worker = (this.worker = new Worker(new URL("./worker.ts", import.meta.url), { type: "module" }));
    await new Promise<void>((resolve, reject) => {
      worker.onerror = (event) => {
        const reason = event.message || "the training worker died";
        reject(new Error(reason));
        if (worker === this.worker) this.heard.died(reason);
      };
      worker.onmessage = ({ data }: MessageEvent<FromWorker>) => {
        this.heard.tick();
        if (data.kind === "guess") this.guesses.get(data.id)?.(data.scores);
        else if (data.kind === "ready") {
          this.arithmetic = data.arithmetic;
          resolve();
        } else if (data.kind !== "tick") this.heard.on(data);
      };
      this.tell({ kind: "prepare", wasm: this.wasm });
      this.tell({ kind: "data", data: this.data });
    });
  }

  stop(): void {
    this.worker?.terminate();
    this.guesses.forEach((resolve) => resolve());
  }

  work(start: Start, weights: Uint8Array, batchSize: number): void {
    this.tell({ kind: "work", start, weights, batchSize });
  }

  /** What the newest model here makes of a row; nothing before the first task. */
  async guess(x: Float32Array<ArrayBuffer>): Promise<Float32Array | undefined> {
    const id = Math.random();
    const answer = new Promise<Float32Array | undefined>((resolve) => this.guesses.set(id, resolve));
    this.tell({ kind: "guess", id, x });
    return answer.finally(() => this.guesses.delete(id));
  }

  private tell(message: ToWorker): void {
    this.worker!.postMessage(message);
  }
}
