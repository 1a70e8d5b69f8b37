// What the page remembers on this device: who it is here, what it has signed, its owner's rules, and the rows it trains on.
import { hex } from "./arithmetic";
import { claimOf, placeOf, signUpdate, type Claim, type Member } from "./key";
import type { Start, Summary } from "./protocol";
import { Database, remove, shelf, store, stored } from "./shelf";
import { RULES, type Rules } from "./owner";
import type { Data } from "./work";

export type Kept = { summary: Summary; data: Data };

/**
 * What this device has done so far: how many of its updates counted, the newest of them, and the models it heard of;
 * and the job of a task that it has begun, with how often it began without an end: a browser that ends a page for lack of
 * memory says nothing.
 */
export type Tally = { counted: number; last: string; begun?: { job: string; times: number }; history: { job: string; round: number; accuracy?: number; loss?: number }[] };

const MEMBER = "member";
const OWNER = "tutti-owner";
const TALLY = "tutti-tally";

export async function member(): Promise<Member | undefined> {
  return (await shelf()).get<Member>(MEMBER);
}

export async function remember(member: Member): Promise<void> {
  await (await shelf()).change<Member>(MEMBER, () => member);
}

/**
 * The signature under an update, and its number: the same again for the same. What was signed is kept before anybody is
 * told, and where the key is, so that no coordinator can have two updates signed under one number (services/signing.py).
 * Where the key is not kept any more, what it signed is not known either: it signs nothing then.
 */
export async function signed(member: Member, start: Start, claim: Claim): Promise<{ nonce: number; signature: string }> {
  const { session, round } = placeOf(start);
  const its = claimOf(start, claim);
  const noted = (before: string[] = [], kept?: Member) => {
    if (kept?.key !== member.key) throw new Error("not signed: the key of this device is not kept here any more, as after leaving in another tab: load this page again");
    return before.includes(its) ? before : [...before, its];
  };
  const claims = await (await shelf()).change<string[], Member>(`signed/${hex(session)}/${round}`, noted, MEMBER);
  const nonce = claims.indexOf(its);
  return { nonce, signature: signUpdate(member, start, claim, nonce) };
}

export function rules(): Rules {
  return { ...RULES, ...stored<Rules>(OWNER) };
}

export function setRules(rules: Rules): void {
  store(OWNER, rules);
}

export function tally(): Tally {
  return stored<Tally>(TALLY) ?? { counted: 0, last: "", history: [] };
}

export function setTally(tally: Tally): void {
  store(TALLY, tally);
}

/** Forget everything: who this device was, what it signed as that, and its rows. */
export async function forget(): Promise<void> {
  await (await shelf()).clear();
  remove(TALLY);
}

export function rows(): Promise<Kept | undefined> {
  return new Database().get<Kept>("data");
}

export async function keepRows(kept: Kept): Promise<void> {
  await new Database().change<Kept>("data", () => kept);
}
