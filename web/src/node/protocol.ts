// The node protocol as a browser speaks it: docs/protocol.md says what each message means.

export const PROTOCOL = 1;
/** Bytes of a blob that may come, or go, with the message that names it. */
export const MAX_ATTACHED = 64 * 1024;

export type Schema = {
  task: "classification" | "regression";
  shape: number[];
  outputs: number;
  features?: string[];
  classes?: string[];
  mean?: number[];
  deviation?: number[];
};
export type Summary = { name: string; data: Schema; examples: number; held_out: number; digest: string; source: string };
export type Metrics = Record<string, number>;
export type Place = { job: string; round: number; attempt: number };

export type Registered = { type: "device:registered"; node: string; version?: string; heartbeat?: number; progress?: number; attached?: number };
/** Choices are written `name:key=value,…`; `seed` and `chain` stay text, for they may have more digits than a number here can hold. */
export type Start = Place & {
  type: "training:start";
  name: string;
  rounds: number;
  task: "train" | "evaluate";
  model: string;
  data: Schema;
  weights: string;
  seed: string;
  cohort: number;
  training: {
    epochs?: number;
    batch_size?: number | null;
    optimizer?: "sgd" | "adam";
    lr?: number;
    lr_schedule?: string;
    momentum?: number;
    weight_decay?: number;
    max_steps?: number | null;
  };
  strategy?: string;
  settings?: Record<string, number>;
  evaluate?: boolean;
  domain?: { chain?: string; contract?: string };
};
export type Verdict = Place & { type: "weights:verdict"; accepted: boolean; reason?: string; resend?: boolean };
export type FromCoordinator =
  | Registered
  | Start
  | Verdict
  | (Place & { type: "training:stop"; reason: string })
  | { type: "weights:global"; job: string; round: number; final?: boolean; metrics?: Metrics }
  | { type: "error"; code: string; detail: string; fatal?: boolean }
  | { type: "data:describe"; id: string; nodes: number };

export type Submission = Place & { type: "weights:submit"; digest: string; weight: number; metrics: Metrics; seconds: number; nonce?: number; signature?: string };
export type Failure = Place & { type: "training:failed"; reason: string };
export type FromNode =
  | Submission
  | Failure
  | (Place & { type: "training:progress"; done: number; epoch?: number; loss?: number })
  | { type: "device:heartbeat"; cpu?: number; memory?: number; battery?: number; open: boolean }
  | { type: "data:described"; id: string; reason: string };

/** A coordinator's message, and the blob that came with it in a binary frame. */
export function read(frame: string | ArrayBuffer): { message: FromCoordinator; blob?: Uint8Array } {
  if (typeof frame === "string") return { message: parse(frame) };
  const length = new DataView(frame).getUint32(0);
  if (length > frame.byteLength - 4) throw new Error("a message of the coordinator was cut off");
  return { message: parse(new TextDecoder().decode(new Uint8Array(frame, 4, length))), blob: new Uint8Array(frame.slice(4 + length)) };
}

function parse(text: string): FromCoordinator {
  return JSON.parse(text.replace(/"(seed|chain)":\s*(\d+)/g, '"$1":"$2"')) as FromCoordinator;
}

/** A binary frame: the message, and the blob that it names. */
export function attach(message: FromNode, blob: Uint8Array): Uint8Array<ArrayBuffer> {
  const text = new TextEncoder().encode(JSON.stringify(message));
  const frame = new Uint8Array(4 + text.length + blob.length);
  new DataView(frame.buffer).setUint32(0, text.length);
  frame.set(text, 4);
  frame.set(blob, 4 + text.length);
  return frame;
}

/** `mlp:hidden=40x30,dropout=0.1` as its name and options. */
export function choice(written: string | { name: string; options?: Record<string, unknown> }): { name: string; options: Record<string, string> } {
  if (typeof written !== "string") return { name: written.name, options: Object.fromEntries(Object.entries(written.options ?? {}).map(([key, value]) => [key, Array.isArray(value) ? value.join("x") : String(value)])) };
  const [name, rest = ""] = written.split(/:(.*)/s, 2) as [string, string?];
  return { name, options: Object.fromEntries(rest.split(",").filter(Boolean).map((pair) => pair.split("=", 2) as [string, string])) };
}
