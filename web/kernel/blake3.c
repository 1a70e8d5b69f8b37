/* BLAKE3, the hash that names models and updates, in its plain form: https://github.com/BLAKE3-team/BLAKE3-specs.

   Pages from a plain http address have no crypto.subtle, and no browser has this hash. */

#include <stdint.h>
#include <string.h>

enum { BLOCK = 64, CHUNK = 1024, START = 1, END = 2, PARENT = 4, ROOT = 8, DEEPEST = 54 };

static const uint32_t IV[8] = {0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A,
                               0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19};
static const uint8_t ORDER[16] = {2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8};

static uint32_t turned(uint32_t x, int by) { return x >> by | x << (32 - by); }

static void quarter(uint32_t *v, int a, int b, int c, int d, uint32_t x, uint32_t y) {
    v[a] += v[b] + x;
    v[d] = turned(v[d] ^ v[a], 16);
    v[c] += v[d];
    v[b] = turned(v[b] ^ v[c], 12);
    v[a] += v[b] + y;
    v[d] = turned(v[d] ^ v[a], 8);
    v[c] += v[d];
    v[b] = turned(v[b] ^ v[c], 7);
}

static void compress(const uint32_t chain[8], const uint32_t words[16], uint64_t counter, uint32_t length,
                     uint32_t flags, uint32_t out[8]) {
    uint32_t v[16], m[16], next[16];
    memcpy(v, chain, 32);
    memcpy(v + 8, IV, 16);
    v[12] = (uint32_t)counter;
    v[13] = (uint32_t)(counter >> 32);
    v[14] = length;
    v[15] = flags;
    memcpy(m, words, 64);
    for (int round = 0; round < 7; round++) {
        quarter(v, 0, 4, 8, 12, m[0], m[1]);
        quarter(v, 1, 5, 9, 13, m[2], m[3]);
        quarter(v, 2, 6, 10, 14, m[4], m[5]);
        quarter(v, 3, 7, 11, 15, m[6], m[7]);
        quarter(v, 0, 5, 10, 15, m[8], m[9]);
        quarter(v, 1, 6, 11, 12, m[10], m[11]);
        quarter(v, 2, 7, 8, 13, m[12], m[13]);
        quarter(v, 3, 4, 9, 14, m[14], m[15]);
        for (int i = 0; i < 16; i++)
            next[i] = m[ORDER[i]];
        memcpy(m, next, 64);
    }
    for (int i = 0; i < 8; i++)
        out[i] = v[i] ^ v[i + 8];
}

/* The chaining value of up to 1024 bytes; `last` is ROOT if they are all there is. */
static void chunk(const uint8_t *data, uint32_t size, uint64_t number, uint32_t last, uint32_t out[8]) {
    memcpy(out, IV, 32);
    uint32_t flags = START;
    do {
        uint32_t words[16] = {0}, length = size < BLOCK ? size : BLOCK;
        memcpy(words, data, length);
        if (size <= BLOCK)
            flags |= END | last;
        compress(out, words, number, length, flags, out);
        data += length;
        size -= length;
        flags = 0;
    } while (size);
}

static void join(const uint32_t left[8], const uint32_t right[8], uint32_t last, uint32_t out[8]) {
    uint32_t words[16];
    memcpy(words, left, 32);
    memcpy(words + 8, right, 32);
    compress(IV, words, 0, BLOCK, PARENT | last, out);
}

/* Hash of the 32-bit number of bytes at `data`, as 32 bytes to `out`. */
__attribute__((export_name("blake3"))) void blake3(const uint8_t *data, uint32_t size, uint8_t *out) {
    uint32_t waiting[DEEPEST][8], found[8];
    int depth = 0;
    uint64_t number = 0;
    for (; size > CHUNK; size -= CHUNK, data += CHUNK) {
        chunk(data, CHUNK, number++, 0, found);
        for (uint64_t whole = number; !(whole & 1); whole >>= 1)
            join(waiting[--depth], found, 0, found);
        memcpy(waiting[depth++], found, 32);
    }
    chunk(data, size, number, depth ? 0 : ROOT, found);
    while (depth > 0) {
        depth--;
        join(waiting[depth], found, depth ? 0 : ROOT, found);
    }
    memcpy(out, found, 32);
}
