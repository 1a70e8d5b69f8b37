// BLAKE3 in plain JavaScript: for what is hashed outside the worker, and where there is no WebAssembly.
const IV = [0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19];
const ORDER = [2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8];
const QUARTERS = [[0, 4, 8, 12], [1, 5, 9, 13], [2, 6, 10, 14], [3, 7, 11, 15], [0, 5, 10, 15], [1, 6, 11, 12], [2, 7, 8, 13], [3, 4, 9, 14]];
const [START, END, PARENT, ROOT] = [1, 2, 4, 8];
const [BLOCK, CHUNK] = [64, 1024];

function compress(chain: ArrayLike<number>, block: Uint32Array, counter: number, length: number, flags: number): Uint32Array {
  const v = new Uint32Array([...Array.from(chain), ...IV.slice(0, 4), counter, Math.floor(counter / 2 ** 32), length, flags]);
  const turn = (x: number, by: number): number => (x >>> by) | (x << (32 - by));
  let words = block;
  for (let round = 0; round < 7; round++) {
    QUARTERS.forEach(([a, b, c, d], place) => {
      for (const [word, first, second] of [[words[2 * place]!, 16, 12], [words[2 * place + 1]!, 8, 7]] as const) {
        v[a!] = v[a!]! + v[b!]! + word;
        v[d!] = turn(v[d!]! ^ v[a!]!, first);
        v[c!] = v[c!]! + v[d!]!;
        v[b!] = turn(v[b!]! ^ v[c!]!, second);
      }
    });
    words = Uint32Array.from(ORDER, (place) => words[place]!);
  }
  return v.slice(0, 8).map((word, place) => word ^ v[place + 8]!);
}

function chunk(data: Uint8Array, number: number, last: number): Uint32Array {
  let chain: ArrayLike<number> = IV;
  let at = 0;
  do {
    const block = new Uint8Array(BLOCK);
    const part = data.subarray(at, at + BLOCK);
    block.set(part);
    const flags = (at ? 0 : START) | (at + BLOCK >= data.length ? END | last : 0);
    chain = compress(chain, new Uint32Array(block.buffer), number, part.length, flags);
    at += BLOCK;
  } while (at < data.length);
  return chain as Uint32Array;
}

export function blake3(data: Uint8Array): Uint8Array {
  const join = (left: Uint32Array, right: Uint32Array, last: number): Uint32Array => compress(IV, new Uint32Array([...left, ...right]), 0, BLOCK, PARENT | last);
  const waiting: Uint32Array[] = [];
  let number = 0;
  for (; data.length > CHUNK; data = data.subarray(CHUNK)) {
    let found = chunk(data.subarray(0, CHUNK), number++, 0);
    for (let whole = number; whole % 2 === 0; whole /= 2) found = join(waiting.pop()!, found, 0);
    waiting.push(found);
  }
  let found = chunk(data, number, waiting.length ? 0 : ROOT);
  while (waiting.length) found = join(waiting.pop()!, found, waiting.length ? 0 : ROOT);
  return new Uint8Array(found.buffer);
}
