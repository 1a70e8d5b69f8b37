// The key by which the coordinator knows this device. Browsers lend theirs to pages that came over TLS only, and a page that
// came by plain http says everything aloud: so it shows no secret, but signs its name, the time
// and what it is for (services/proofs.py).
import { getPublicKey, hashes, sign } from "@noble/ed25519";
import { sha512 } from "@noble/hashes/sha2.js";
import { hex } from "./arithmetic";

hashes.sha512 = sha512;

/** Who this device is to the coordinator; `key` is 32 random bytes in hexadecimal. */
export type Member = { node: string; key: string };

let newest = 0;

/** What the coordinator keeps of this device's key: the public half. */
export const publicOf = ({ key }: Member): string => `ed25519:${hex(getPublicKey(bytes(key)))}`;

/** A proof for one connection, or one request by its method and path. */
export function proof(member: Member, use: string): string {
  newest = Math.max(Date.now(), newest + 1);
  const signature = sign(new TextEncoder().encode(`tutti ${member.node} ${newest} ${use}`), bytes(member.key));
  return `${publicOf(member)}:${newest}:${hex(signature)}`;
}

const bytes = (text: string): Uint8Array => Uint8Array.from({ length: text.length / 2 }, (_, place) => parseInt(text.slice(2 * place, 2 * place + 2), 16));
