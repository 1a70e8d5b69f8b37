// This device's key (secp256k1): by its signatures the coordinator knows the device, and anybody whose an update is.
// Browsers lend their own cryptography to pages that came over TLS only, and do not have this curve at all. A page that
// came by plain http says everything aloud: so it shows no secret, but signs what it asks for (services/proofs.py).
import { secp256k1 } from "@noble/curves/secp256k1.js";
import { sha256 } from "@noble/hashes/sha2.js";
import { keccak_256 } from "@noble/hashes/sha3.js";
import { hex } from "./arithmetic";
import type { Start } from "./protocol";

/** Who this device is to the coordinator; `key` is 32 random bytes in hexadecimal. */
export type Member = { node: string; key: string };
/** What the coordinator wants proofs to bear, and its time in milliseconds. */
export type Challenge = { challenge: string; now: number };
/** What is signed of an update, beside job, round and model. */
export type Claim = { digest: string; samples: number };

const { ORDER } = secp256k1.Point.Fn;
const SIGNING = { prehash: false, lowS: true };

/** Both coordinates of its public key, in hexadecimal. */
export const publicOf = (member: Member): string => hex(secp256k1.getPublicKey(secretOf(member), false).subarray(1));

/** By which contracts know the key, and people. */
export const addressOf = (member: Member): string => `0x${hex(keccak_256(bytes(publicOf(member))).subarray(12))}`;

/** What the device joins with, in the place of a secret. */
export const identityOf = (member: Member): string => `secp256k1:${publicOf(member)}`;

/** A proof for one connection, or one request by its method and path; `now` is the coordinator's time. */
export function proof(member: Member, { challenge, now }: Challenge, use: string): string {
  const statement = keccak_256(utf8(`tutti ${member.node} ${challenge} ${now} ${use}`));
  return `${identityOf(member)}:${challenge}:${now}:${signature(member, statement)}`;
}

/**
 * For what an update is, as it is signed. What a signature would take for another job or round than was written (a round as
 * text, half a character) is refused: it would be signed twice under one number.
 */
export function placeOf({ job, round }: Pick<Start, "job" | "round">): { session: Uint8Array; round: bigint } {
  if (!Number.isSafeInteger(round) || round < 0) throw new Error(`not signed: expected a round as a number from 0 to 2^53 - 1, came ${JSON.stringify(round)}`);
  if (typeof job !== "string" || new TextDecoder("utf-8", { ignoreBOM: true }).decode(utf8(job)) !== job) throw new Error(`not signed: expected a job's name in whole characters, came ${JSON.stringify(job)}`);
  return { session: sha256(utf8(`session/${job}`)), round: BigInt(round) };
}

/** By which a device knows what it has signed: its outcome of this task, whatever the number. */
export const claimOf = (start: Start, claim: Claim): string => hex(digestOf(start, claim, 0));

export const signUpdate = (member: Member, start: Start, claim: Claim, nonce: number): string => signature(member, digestOf(start, claim, nonce));

// -- typed data by EIP-712, as in domain/signing.py ------------------------------------------------------

const utf8 = (text: string): Uint8Array => new TextEncoder().encode(text);
const DOMAIN = keccak_256(utf8("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"));
const UPDATE = keccak_256(utf8("Update(bytes32 session,uint64 round,bytes32 baseModel,bytes32 updateHash,uint64 samples,uint64 nonce)"));
const [NAME, VERSION] = [keccak_256(utf8("Tutti")), keccak_256(utf8("1"))];

/** The 32 bytes that are signed for an update. */
export function digestOf(start: Start, { digest, samples }: Claim, nonce: number): Uint8Array {
  const { chain = "0", contract = "0x" } = start.domain ?? {};
  const separator = keccak_256(joined(DOMAIN, NAME, VERSION, word(chain), bytes(contract.slice(2).padStart(64, "0"))));
  const { session, round } = placeOf(start);
  const update = joined(UPDATE, session, word(round), bytes(start.weights), bytes(digest), word(samples), word(nonce));
  return keccak_256(joined(Uint8Array.of(0x19, 0x01), separator, keccak_256(update)));
}

const signature = (member: Member, digest: Uint8Array): string => hex(secp256k1.sign(digest, secretOf(member), SIGNING));

/** A number from 1 on below the curve's order, as Python nodes make it of such bytes. */
const secretOf = ({ key }: Member): Uint8Array => word((BigInt(`0x${key}`) % (ORDER - 1n)) + 1n);
const word = (number: number | bigint | string): Uint8Array => bytes(BigInt(number).toString(16).padStart(64, "0"));
const joined = (...parts: Uint8Array[]): Uint8Array => Uint8Array.from(parts.flatMap((part) => [...part]));
const bytes = (text: string): Uint8Array => Uint8Array.from({ length: text.length / 2 }, (_, place) => parseInt(text.slice(2 * place, 2 * place + 2), 16));
