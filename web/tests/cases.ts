// Reads cases as JSON lines, and answers each with what the page's modules make of it: for the Python tests.
import { readFileSync } from "node:fs";
import { hex, shapeOf, type Arithmetic, type Rows } from "../src/node/arithmetic";
import { fromCsv, given, own, parseCsv } from "../src/node/data";
import { Kernel } from "../src/node/kernel";
import { Plain } from "../src/node/plain";
import * as keep from "../src/node/keep";
import { addressOf, claimOf, digestOf, identityOf, proof, publicOf, signUpdate } from "../src/node/key";
import { choice, read, type Schema, type Start } from "../src/node/protocol";
import { decode, encode } from "../src/node/tensors";
import { batchesOf, carryOut, scheduled } from "../src/node/work";

type Case = { what: string; [key: string]: any };

const kernel = await Kernel.of(readFileSync(process.argv[2]!));
const kinds: Record<string, Arithmetic> = { kernel, plain: new Plain() };
const floats = (text: string): Float32Array<ArrayBuffer> => new Float32Array(new Uint8Array(Buffer.from(text, "base64")).buffer);
const text = (values: Float32Array): string => Buffer.from(values.buffer, values.byteOffset, values.byteLength).toString("base64");

async function answer(asked: Case): Promise<unknown> {
  const arithmetic = kinds[asked.kind]!;
  switch (asked.what) {
    case "train": {
      const rows: Rows = { x: floats(asked.x), y: floats(asked.y), regression: asked.regression, count: asked.count };
      const shape = shapeOf(choice(asked.model), asked.shape, asked.outputs);
      const batches = batchesOf(arithmetic, rows.count, BigInt(asked.seed), asked.epochs, asked.batch, Infinity);
      const values = floats(asked.params);
      const { delta, loss, hits } = arithmetic.train(shape, asked.step, values, rows, batches.map((batch) => batch.rows), asked.tallied, () => undefined);
      return { delta: text(delta), loss, hits, predicted: text(arithmetic.predict(shape, values, rows)) };
    }
    case "carry out": {
      const rows: Rows = { x: floats(asked.x), y: floats(asked.y), regression: asked.regression, count: asked.count };
      const data = { schema: asked.start.data, train: rows, heldOut: { ...rows, x: floats(""), y: floats(""), count: 0 } };
      return carryOut(asked.start, new Uint8Array(Buffer.from(asked.model, "base64")), data, arithmetic, asked.batch, () => undefined).message;
    }
    case "shuffle":
      return [...arithmetic.shuffle(BigInt(asked.seed), asked.epoch, asked.n)];
    case "blake3":
      return arithmetic.blake3(new Uint8Array(Buffer.from(asked.data, "base64")));
    case "scheduled":
      return scheduled(asked.schedule, asked.round, asked.rounds);
    case "file":
      return Buffer.from(encode(decode(new Uint8Array(Buffer.from(asked.data, "base64"))))).toString("base64");
    case "key":
      return { public: publicOf(asked.member), address: addressOf(asked.member), identity: identityOf(asked.member) };
    case "proof":
      return proof(asked.member, asked.challenge, asked.use);
    case "sign": {
      const start = read(asked.start).message as Start; // as it comes over the wire
      return { claim: claimOf(start, asked.claim), digest: hex(digestOf(start, asked.claim, asked.nonce)), signature: signUpdate(asked.member, start, asked.claim, asked.nonce) };
    }
    case "remember":
      return keep.remember(asked.member);
    case "forget":
      return keep.forget();
    case "signed":
      return keep.signed(asked.member, read(asked.start).message as Start, asked.claim);
    case "csv":
      return fromCsv(asked.text, "mine", asked.target, (asked.schema as Schema | undefined) ?? null);
    case "cells":
      return parseCsv(asked.text);
    case "own": {
      const kept = own("mine", asked.schema, asked.x.map((row: number[]) => new Float32Array(row)), asked.y);
      return { ...kept, given: given(kept.data) };
    }
  }
  throw new Error(`no such case: ${asked.what}`);
}

for (const line of readFileSync(0, "utf8").split("\n").filter(Boolean)) {
  let said: unknown;
  try {
    said = { answer: await answer(JSON.parse(line)) };
  } catch (error) {
    said = { error: (error as Error).message };
  }
  console.log(JSON.stringify(said, (_, value) => (ArrayBuffer.isView(value) ? Array.from(value as unknown as number[]) : value)));
}
