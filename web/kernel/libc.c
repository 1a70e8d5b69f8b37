/* What a C library would bring: the same instructions in every host, and so the same bits.

   expf and logf reduce their argument to a small range and take a polynomial there (Cody and Waite, Software Manual for
   the Elementary Functions, 1980); both are within 2 units in the last place for what softmax needs. */

#include <math.h>
#include <stdint.h>
#include <string.h>

typedef union {
    float value;
    uint32_t bits;
} Float;

static float scaled(float value, int exponent) {
    Float power = {.bits = (uint32_t)(exponent + 127) << 23};
    return value * power.value;
}

float expf(float x) {
    if (x != x)
        return x;
    if (x > 88.72284f)
        return __builtin_inff();
    if (x < -87.33655f) /* smaller results would be subnormal */
        return 0;
    float n = __builtin_floorf(x * 1.44269504f + 0.5f);
    float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    float y = p * r * r + r + 1;
    int half = (int)n / 2; /* 2^128 itself is no float */
    return scaled(scaled(y, half), (int)n - half);
}

float logf(float x) {
    if (!(x > 0))
        return x == 0 ? -__builtin_inff() : __builtin_nanf("");
    if (x == __builtin_inff())
        return x;
    int e = 0;
    if (x < 1.17549435e-38f) {
        x *= 8388608.0f;
        e = -23;
    }
    Float m = {.value = x};
    e += (int)(m.bits >> 23) - 126;
    m.bits = (m.bits & 0x7fffff) | 0x3f000000; /* from 0.5 to 1 */
    float f = m.value;
    if (f < 0.70710678f) {
        e -= 1;
        f += f;
    }
    f -= 1;
    float z = f * f;
    float p = 7.0376836292e-2f;
    p = p * f - 1.1514610310e-1f;
    p = p * f + 1.1676998740e-1f;
    p = p * f - 1.2420140846e-1f;
    p = p * f + 1.4249322787e-1f;
    p = p * f - 1.6668057665e-1f;
    p = p * f + 2.0000714765e-1f;
    p = p * f - 2.4999993993e-1f;
    p = p * f + 3.3333331174e-1f;
    float y = f * z * p - 2.12194440e-4f * (float)e - 0.5f * z;
    return (f + y) + 0.693359375f * (float)e;
}
