// One task on a node: measure the received model, train it, encode the update (services/work.py does the same).
import { shapeOf, Unsupported, type Arithmetic, type Report, type Rows, type Shape } from "./arithmetic";
import { choice, type Metrics, type Schema, type Start, type Submission } from "./protocol";
import { decode, encode } from "./tensors";

/** A node's rows: those to train on, and those to measure models with. */
export type Data = { schema: Schema; train: Rows; heldOut: Rows };

/** Strategies whose half on the node is to train from the global model, at most pulled towards it. */
export const STRATEGIES = ["fedavg", "fedavgm", "fedprox", "fedadagrad", "fedadam", "fedyogi", "fedbuff", "diloco", "cyclic", "one-shot"];

export class Diverged extends Error {}

export function carryOut(start: Start, file: Uint8Array, data: Data, arithmetic: Arithmetic, batchSize: number, report: Report): { message: Submission; blob?: Uint8Array<ArrayBuffer> } {
  const began = performance.now();
  const strategy = choice(start.strategy ?? "fedavg");
  if (!STRATEGIES.includes(strategy.name) || strategy.options.adaptive === "true") throw new Unsupported(`browsers cannot do their half of the strategy “${strategy.name}”`);
  if ((start.training.optimizer ?? "sgd") !== "sgd") throw new Unsupported(`browsers train with SGD, this job wants ${start.training.optimizer}`);
  const shape = shapeOf(choice(start.model), data.schema.shape, data.schema.outputs);
  const model = decode(file);
  const expected = parameters(shape);
  if (model.values.length !== expected) throw new Error(`the model has ${model.values.length} values, expected ${expected}`);
  const heldOut = normalized(data.heldOut, start.data);
  if (start.task === "evaluate" && !heldOut.count) throw new Error("this device holds out no rows to measure a model on");
  const measured = start.evaluate || start.task === "evaluate" ? measure(arithmetic, shape, model.values, heldOut) : {};
  const place = { job: start.job, round: start.round, attempt: start.attempt };
  const message = { type: "weights:submit" as const, ...place, digest: "" };
  const seconds = () => (performance.now() - began) / 1000;
  if (start.task === "evaluate") return { message: { ...message, weight: heldOut.count, metrics: measured, seconds: seconds() } };
  const rows = normalized(data.train, start.data);
  const epochs = start.training.epochs ?? 1;
  const batches = batchesOf(arithmetic, rows.count, BigInt(start.seed), epochs, batchSize, start.training.max_steps ?? Infinity);
  const last = batches.at(-1)!.epoch;
  const step = {
    lr: (start.training.lr ?? 0.1) * scheduled(start.training.lr_schedule ?? "constant", start.round, start.rounds),
    momentum: start.training.momentum ?? 0,
    decay: start.training.weight_decay ?? 0,
    mu: start.settings?.mu ?? 0,
  };
  const tallied = batches.findIndex(({ epoch }) => epoch === last);
  const { delta, loss, hits } = arithmetic.train(shape, step, model.values, rows, batches.map((batch) => batch.rows), tallied, report);
  const strange = delta.reduce((count, value) => count + (Number.isFinite(value) ? 0 : 1), 0);
  if (strange) throw new Diverged(`training diverged: ${strange} of ${delta.length} values are not finite; lower the learning rate`);
  const seen = batches.slice(tallied).reduce((sum, batch) => sum + batch.rows.length, 0);
  const metrics: Metrics = { ...measured, train_loss: loss / seen, train_examples: rows.count, batch_size: batchSize };
  if (!rows.regression) metrics.train_accuracy = hits / seen;
  const blob = encode({ ...model, values: delta });
  return { message: { ...message, digest: arithmetic.blake3(blob), weight: rows.count, metrics: finite(metrics), seconds: seconds() }, blob };
}

export function parameters(shape: Shape): number {
  const dense = shape.widths.slice(1).reduce((sum, outputs, place) => sum + (shape.widths[place]! + 1) * outputs, 0);
  return shape.image ? dense + (25 * shape.image[0] + 1) * 32 + (25 * 32 + 1) * 64 : dense;
}

/** Which rows make which batch: shuffled anew in each epoch, cut off after `most` steps. */
export function batchesOf(arithmetic: Arithmetic, n: number, seed: bigint, epochs: number, size: number, most: number): { epoch: number; rows: Uint32Array }[] {
  const found: { epoch: number; rows: Uint32Array }[] = [];
  for (let epoch = 1; epoch <= epochs && found.length < most; epoch++) {
    const order = arithmetic.shuffle(seed, epoch, n);
    for (let at = 0; at < n && found.length < most; at += size) found.push({ epoch, rows: order.slice(at, at + size) });
  }
  return found;
}

/** The factor on the learning rate in a round (core/schedules). */
export function scheduled(written: string, round: number, rounds: number): number {
  const { name, options } = choice(written);
  const option = (key: string, otherwise: number) => Number(options[key] ?? otherwise);
  switch (name) {
    case "constant":
      return 1;
    case "step":
      return option("gamma", 0.1) ** Math.floor((round - 1) / option("every", 10));
    case "exponential":
      return option("gamma", 0.99) ** (round - 1);
    case "cosine": {
      const floor = option("floor", 0);
      return floor + ((1 - floor) * (1 + Math.cos((Math.PI * (round - 1)) / rounds))) / 2;
    }
    case "warmup":
      return Math.min(1, round / option("length", 5));
  }
  throw new Unsupported(`browsers do not know the learning-rate schedule “${name}”`);
}

/** Shares of belief in each class, for one row, by the model that this task came with. */
export function guess(arithmetic: Arithmetic, start: Start, file: Uint8Array, x: Float32Array<ArrayBuffer>): Float32Array {
  const rows = normalized({ x, y: new Float32Array(1), regression: false, count: 1 }, start.data);
  const scores = arithmetic.predict(shapeOf(choice(start.model), start.data.shape, start.data.outputs), decode(file).values, rows);
  const most = Math.max(...scores);
  const total = scores.reduce((sum, score) => sum + Math.exp(score - most), 0);
  return scores.map((score) => Math.exp(score - most) / total);
}

function normalized(rows: Rows, { mean, deviation }: Schema): Rows {
  if (!mean?.length || !deviation) return rows;
  const x = rows.x.map((value, place) => {
    const column = place % mean.length;
    return (value - mean[column]!) / (deviation[column]! > 0 ? deviation[column]! : 1);
  });
  return { ...rows, x };
}

function measure(arithmetic: Arithmetic, shape: Shape, values: Float32Array, rows: Rows): Metrics {
  if (!rows.count) return {};
  const out = arithmetic.predict(shape, values, rows);
  const outputs = shape.widths.at(-1)!;
  let [loss, hits] = [0, 0];
  for (let row = 0; row < rows.count; row++) {
    const scores = out.subarray(row * outputs, (row + 1) * outputs);
    if (rows.regression) {
      scores.forEach((value, o) => (loss += (value - rows.y[row * outputs + o]!) ** 2 / outputs));
      continue;
    }
    const best = scores.indexOf(Math.max(...scores));
    loss += Math.log(scores.reduce((sum, value) => sum + Math.exp(value - scores[best]!), 0)) - (scores[rows.y[row]!]! - scores[best]!);
    hits += best === rows.y[row] ? 1 : 0;
  }
  const found: Metrics = { eval_loss: loss / rows.count, eval_examples: rows.count };
  return finite(rows.regression ? { ...found, eval_mse: loss / rows.count } : { ...found, eval_accuracy: hits / rows.count });
}

const finite = (metrics: Metrics): Metrics => Object.fromEntries(Object.entries(metrics).filter(([, value]) => Number.isFinite(value)));
