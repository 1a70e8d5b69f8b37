/* Which rows make which batch, as numpy.random.Generator(PCG64([seed, epoch])).permutation(n) says.

   SeedSequence: https://numpy.org/doc/stable/reference/random/bit_generators/generated/numpy.random.SeedSequence.html,
   after M. E. O'Neill, "Developing a seed_seq alternative"; PCG64 (XSL RR 128/64): https://www.pcg-random.org/paper.html. */

#include <stdint.h>

typedef struct {
    uint64_t high, low;
} Wide;

typedef struct {
    Wide state, increment;
    uint32_t spare;
    int has_spare;
} Generator;

static Wide times(uint64_t a, uint64_t b) {
    uint64_t a0 = (uint32_t)a, a1 = a >> 32, b0 = (uint32_t)b, b1 = b >> 32;
    uint64_t low = a0 * b0, mid = a1 * b0 + (low >> 32), other = a0 * b1 + (uint32_t)mid;
    return (Wide){a1 * b1 + (mid >> 32) + (other >> 32), (other << 32) | (uint32_t)low};
}

static Wide plus(Wide a, Wide b) {
    uint64_t low = a.low + b.low;
    return (Wide){a.high + b.high + (low < a.low), low};
}

static void advance(Generator *g) {
    const Wide factor = {0x2360ED051FC65DA4, 0x4385DF649FCCF645};
    Wide product = times(g->state.low, factor.low);
    product.high += g->state.high * factor.low + g->state.low * factor.high;
    g->state = plus(product, g->increment);
}

static uint32_t next32(Generator *g) {
    if (g->has_spare) {
        g->has_spare = 0;
        return g->spare;
    }
    advance(g);
    uint64_t mixed = g->state.high ^ g->state.low;
    unsigned turn = (unsigned)(g->state.high >> 58);
    uint64_t drawn = (mixed >> turn) | (mixed << (-turn & 63));
    g->spare = (uint32_t)(drawn >> 32);
    g->has_spare = 1;
    return (uint32_t)drawn;
}

/* From 0 to `most`, both included: as many bits as it takes, drawn again until they are not too many. */
static uint32_t bounded(Generator *g, uint32_t most) {
    uint32_t mask = UINT32_MAX >> __builtin_clz(most), drawn;
    while ((drawn = next32(g) & mask) > most) {
    }
    return drawn;
}

enum { POOL = 4 };

static uint32_t stirred(uint32_t value, uint32_t *constant, uint32_t factor) {
    value ^= *constant;
    *constant *= factor;
    value *= *constant;
    return value ^ value >> 16;
}

static uint32_t mixed(uint32_t a, uint32_t b) {
    uint32_t found = a * 0xca01f9ddu - b * 0x4973f715u;
    return found ^ found >> 16;
}

static Generator seeded(uint64_t seed, uint32_t epoch) {
    uint32_t words[POOL] = {(uint32_t)seed}, pool[POOL], constant = 0x43b0d7e5, state[8];
    int count = 1;
    if (seed >> 32)
        words[count++] = (uint32_t)(seed >> 32);
    words[count] = epoch;
    for (int i = 0; i < POOL; i++)
        pool[i] = stirred(words[i], &constant, 0x931e8875);
    for (int from = 0; from < POOL; from++)
        for (int to = 0; to < POOL; to++)
            if (from != to)
                pool[to] = mixed(pool[to], stirred(pool[from], &constant, 0x931e8875));
    constant = 0x8b51f9dd;
    for (int i = 0; i < 8; i++)
        state[i] = stirred(pool[i % POOL], &constant, 0x58f38ded);
#define WORD(i) ((uint64_t)state[2 * (i) + 1] << 32 | state[2 * (i)])
    Generator g = {.increment = {WORD(2) << 1 | WORD(3) >> 63, WORD(3) << 1 | 1}};
    advance(&g);
    g.state = plus(g.state, (Wide){WORD(0), WORD(1)});
    advance(&g);
    return g;
}

__attribute__((export_name("shuffle"))) void shuffle(uint32_t seed_low, uint32_t seed_high, uint32_t epoch, int32_t n,
                                                     int64_t *order) {
    Generator g = seeded((uint64_t)seed_high << 32 | seed_low, epoch);
    for (int32_t i = 0; i < n; i++)
        order[i] = i;
    for (int32_t i = n - 1; i > 0; i--) {
        uint32_t j = bounded(&g, (uint32_t)i);
        int64_t kept = order[i];
        order[i] = order[j];
        order[j] = kept;
    }
}
