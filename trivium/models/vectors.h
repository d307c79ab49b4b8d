/* Vectors of as many numbers as the processor's registers hold, and what both kernels do with them. */
#ifndef TRIVIUM_VECTORS
#define TRIVIUM_VECTORS
#include <stdint.h>
#include <string.h>
#ifdef __AVX2__
#include <immintrin.h> /* for what compilers do not find by themselves */
#endif

#ifdef __AVX512F__
#define LANES 16
#define TALL 8 /* rows whose sums fit the registers beside each other, twice */
#else
#define LANES 8
#define TALL 4
#endif
#define INLINE static inline __attribute__((always_inline))
#define UNROLLED _Pragma("GCC unroll 16")

typedef float vec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef float narrow8 __attribute__((vector_size(32)));
typedef float narrow4 __attribute__((vector_size(16)));
typedef int32_t whole __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

INLINE vec load(const float *from) { return *(const vec *)from; }
INLINE vec all(float x) { return x - (vec){0}; }
INLINE vec chosen(whole where, vec a, vec b) { return (vec)(((whole)a & where) | ((whole)b & ~where)); }
/* The second argument is a bound; what is no number stays so. */
INLINE vec least(vec a, vec b) { return chosen(b < a, b, a); }
INLINE vec most(vec a, vec b) { return chosen(b > a, b, a); }

/* Halves on one another, so that several sums can be under way at once. Taken apart by instructions where there are any:
 * copying parts of x keeps x in memory, also in the loop that made it. */
INLINE float total(vec x) {
    narrow8 a;
#if LANES == 16
    a = (narrow8)_mm512_castps512_ps256((__m512)x) + (narrow8)_mm512_extractf64x4_pd((__m512d)x, 1);
#else
    a = x;
#endif
    narrow4 c;
#ifdef __AVX2__
    c = (narrow4)_mm256_castps256_ps128((__m256)a) + (narrow4)_mm256_extractf128_ps((__m256)a, 1);
#else
    narrow4 d;
    memcpy(&c, &a, sizeof c);
    memcpy(&d, (char *)&a + sizeof c, sizeof d);
    c += d;
#endif
    return (c[0] + c[2]) + (c[1] + c[3]);
}

/* e^x of -87 to 88. */
INLINE vec power(vec x) {
    /* 2^n e^r with |r| <= ln 2 / 2, and the series of e^r. Adding 1.5 * 2^23 rounds to a whole number. */
    const vec rounder = all(12582912.0f);
    vec n = (x * 1.44269504f + rounder) - rounder;
    vec r = x - n * 0.693359375f + n * 2.12194440e-4f;
    vec p = all(1.0f / 5040);
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    whole power = (__builtin_convertvector(n, whole) + 127) << 23;
    vec scale;
    memcpy(&scale, &power, sizeof scale);
    return p * scale;
}

INLINE vec exponential(vec x) { return power(least(most(x, all(-87.0f)), all(88.0f))); }

/* Activations, in the order of native_elementwise.py. */
enum { SILU, GELU, GELU_TANH, RELU };

/* f(x), and its derivative. SiLU is x s(x) with the logistic function s; GELU by tanh, x (1 + tanh v) / 2, is x s(2 v);
 * GELU itself is x times the normal distribution, here by formula 7.1.26 of Abramowitz and Stegun, off by 1e-7 at most. */
INLINE vec activated(vec x, const int64_t kind, vec *slope) {
    if (kind == RELU) {
        *slope = chosen(x <= 0.0f, all(0), all(1.0f));
        return chosen(x <= 0.0f, all(0), x);
    }
    if (kind == GELU) {
        const vec size = (vec)((whole)x & 0x7fffffff), bell = exponential(-0.5f * x * x);
        const vec t = 1.0f / (1.0f + 0.23164189f * size);
        vec tail = all(0.530702715f);
        tail = tail * t - 0.726576015f;
        tail = tail * t + 0.710706871f;
        tail = tail * t - 0.142248368f;
        tail = tail * t + 0.127414796f;
        tail = tail * t * bell;
        const vec below = chosen(x < 0.0f, tail, 1.0f - tail);
        *slope = below + x * bell * 0.39894228f;
        return x * below;
    }
    vec u = x, steepness = all(1.0f);
    if (kind == GELU_TANH) {
        u = 1.5957691216f * x * (1.0f + 0.044715f * x * x);
        steepness = 1.5957691216f * (1.0f + 0.134145f * x * x);
    }
    const vec s = 1.0f / (1.0f + exponential(-u)), active = x * s;
    *slope = s + active * (1.0f - s) * steepness;
    return active;
}

#endif
