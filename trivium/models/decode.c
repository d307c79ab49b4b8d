/* A few tokens of each row through all blocks of a decoder, in one call (see native_blocks.py, which compiles and calls it).
 *
 * Weights are packed: [blocks of LANES outputs][inputs][LANES]. Each sum runs over the inputs in order, whatever stands
 * beside it in the batch, so a row never depends on its company.
 */
#include <math.h>
#include <omp.h>

#include "vectors.h"

#define MOST 16 /* sums kept in registers at once */

typedef struct {
    const void *weight; /* float, or int8 where there is a scale */
    const float *scale; /* [outputs] or NULL */
    const float *bias;  /* [outputs] or NULL */
    int64_t outputs, inputs;
} Product;

typedef struct {
    const float *weight, *bias; /* bias NULL where there is none */
} Norm;

typedef struct {
    Norm attention_norm, mlp_norm;             /* weight NULL where there is none */
    Norm attention_output_norm, mlp_output_norm; /* of what the branches add */
    const float *query_norm, *key_norm; /* NULL where there is none */
    Product together, output, gate, up, down; /* gate.weight NULL where the MLP has none */
    const float *cosine, *sine; /* [T, turned], [T, turned / 2]; NULL where nothing turns */
    float *keys, *values;       /* [rows, K, room, C] of the cache */
    int64_t window;             /* tokens seen, 0 for all */
} Layer;

typedef struct {
    int64_t layers, width, queries, key_heads, head, turned, room;
    int64_t whole_heads; /* queries and keys are normalised before they are cut into heads */
    int64_t rms, activation, parallel; /* parallel: both branches read what the block reads */
    float eps, scale, softcap;         /* softcap: bound on the scores of attention, 0 for none */
    const Layer *layer;
} Model;

INLINE vec weights(const void *from, int64_t at, int narrow) {
    if (!narrow) return load((const float *)from + at);
    const int8_t *codes = (const int8_t *)from + at;
#if defined(__AVX512F__)
    return (vec)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)codes)));
#elif defined(__AVX2__)
    return (vec)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)codes)));
#else
    vec wide;
    for (int i = 0; i < LANES; i++) wide[i] = codes[i];
    return wide;
#endif
}

/* Of the last block, whose outputs are fewer than the lanes. */
static __attribute__((noinline)) void store_some(const Product *p, int64_t first, int64_t count, vec y, float *to) {
    for (int64_t i = 0; i < count; i++)
        to[i] = y[i] * (p->scale ? p->scale[first + i] : 1.0f) + (p->bias ? p->bias[first + i] : 0.0f);
}

/* Outputs of `blocks` blocks from `block` on, for `rows` rows; rows, blocks and narrow are constants where it is used. */
INLINE void tile(const Product *p, const float *x, int64_t stride, float *out, int64_t wide, int64_t block,
                 const int rows, const int blocks, const int narrow) {
    vec sum[MOST];
    UNROLLED for (int i = 0; i < rows * blocks; i++) sum[i] = all(0);
    for (int64_t k = 0; k < p->inputs; k++)
        UNROLLED for (int b = 0; b < blocks; b++) {
            vec w = weights(p->weight, ((block + b) * p->inputs + k) * LANES, narrow);
            UNROLLED for (int r = 0; r < rows; r++) sum[r * blocks + b] += w * x[r * stride + k];
        }
    UNROLLED for (int b = 0; b < blocks; b++) {
        int64_t first = (block + b) * LANES, count = p->outputs - first;
        UNROLLED for (int r = 0; r < rows; r++) {
            float *to = out + r * wide + first;
            vec y = sum[r * blocks + b];
            if (count >= LANES) {
                if (narrow) y *= load(p->scale + first);
                if (p->bias) y += load(p->bias + first);
                *(vec *)to = y;
            } else
                store_some(p, first, count, y, to);
        }
    }
}

#define TILES(name, rows, blocks)                                                                                  \
    static void name(const Product *p, const float *x, int64_t stride, float *out, int64_t wide, int64_t from,     \
                     int64_t to) {                                                                                 \
        int64_t block = from;                                                                                      \
        if (p->scale) {                                                                                            \
            for (; block + blocks <= to; block += blocks) tile(p, x, stride, out, wide, block, rows, blocks, 1);   \
            for (; block < to; block++) tile(p, x, stride, out, wide, block, rows, 1, 1);                          \
        } else {                                                                                                   \
            for (; block + blocks <= to; block += blocks) tile(p, x, stride, out, wide, block, rows, blocks, 0);   \
            for (; block < to; block++) tile(p, x, stride, out, wide, block, rows, 1, 0);                          \
        }                                                                                                          \
    }
TILES(tall, TALL, 2)
TILES(four, 4, 2)
TILES(two, 2, 4)
TILES(one, 1, 4)

static int64_t blocks_of(const Product *p) { return (p->outputs + LANES - 1) / LANES; }

/* The share of `count` things that thread `me` of `threads` does. */
static void share(int64_t count, int me, int threads, int64_t *from, int64_t *to) {
    *from = count * me / threads;
    *to = count * (me + 1) / threads;
}

/* x [rows, stride] times the outputs that are the share of thread `me`, into out [rows, wide]. */
static void multiply(const Product *p, int64_t rows, const float *x, int64_t stride, float *out, int64_t wide, int me,
                     int threads) {
    int64_t from, to;
    share(blocks_of(p), me, threads, &from, &to);
    /* A few blocks at a time for all rows, while they are in the cache. */
    for (int64_t begin = from; begin < to; begin += 4) {
        int64_t end = begin + 4 < to ? begin + 4 : to;
        int64_t row = 0;
        for (; row + TALL <= rows; row += TALL) tall(p, x + row * stride, stride, out + row * wide, wide, begin, end);
        for (; row + 4 <= rows; row += 4) four(p, x + row * stride, stride, out + row * wide, wide, begin, end);
        for (; row + 2 <= rows; row += 2) two(p, x + row * stride, stride, out + row * wide, wide, begin, end);
        for (; row < rows; row++) one(p, x + row * stride, stride, out + row * wide, wide, begin, end);
    }
}

static void normalise(const float *x, const Norm *norm, int64_t width, float eps, int64_t rms, float *out) {
    if (!norm->weight) {
        if (out != x) memcpy(out, x, width * sizeof(float));
        return;
    }
    double sum = 0, squares = 0;
    if (!rms) {
        for (int64_t i = 0; i < width; i++) sum += x[i];
        sum /= width;
    }
    const float mean = (float)sum;
    vec part = all(0);
    int64_t i = 0;
    for (; i + LANES <= width; i += LANES) {
        vec d = load(x + i) - mean;
        part += d * d;
    }
    squares = total(part);
    for (; i < width; i++) squares += (x[i] - mean) * (x[i] - mean);
    const float inverse = 1.0f / sqrtf((float)(squares / width) + eps);
    for (i = 0; i < width; i++) out[i] = (x[i] - mean) * inverse * norm->weight[i] + (norm->bias ? norm->bias[i] : 0.0f);
}

static void add(float *to, const float *from, int64_t count) {
    for (int64_t i = 0; i < count; i++) to[i] += from[i];
}

static void turn(float *x, const float *cosine, const float *sine, int64_t turned) {
    const int64_t half = turned / 2;
    for (int64_t i = 0; i < half; i++) {
        const float a = x[i], b = x[half + i];
        x[i] = a * cosine[i] - b * sine[i];
        x[half + i] = b * cosine[half + i] + a * sine[i];
    }
}

/* The scores of `count` keys, a constant. */
INLINE void dots(const float *query, const float *keys, int64_t head, float scale, float *scores, const int count) {
    vec part[4];
    float rest[4] = {0};
    int64_t i = 0;
    UNROLLED for (int n = 0; n < count; n++) part[n] = all(0);
    for (; i + LANES <= head; i += LANES)
        UNROLLED for (int n = 0; n < count; n++) part[n] += load(query + i) * load(keys + n * head + i);
    for (; i < head; i++)
        for (int n = 0; n < count; n++) rest[n] += query[i] * keys[n * head + i];
    UNROLLED for (int n = 0; n < count; n++) scores[n] = (rest[n] + total(part[n])) * scale;
}

/* One query [head] over `count` keys and values [count, head]; scores: room for them. */
static void attend(const float *query, const float *keys, const float *values, int64_t count, int64_t head, float scale,
                   float softcap, float *scores, float *out) {
    float largest = -INFINITY;
    int64_t n = 0;
    for (; n + 4 <= count; n += 4) dots(query, keys + n * head, head, scale, scores + n, 4);
    for (; n < count; n++) dots(query, keys + n * head, head, scale, scores + n, 1);
    if (softcap) /* tanh u = 1 - 2 / (1 + e^2u); scores has room for whole vectors */
        for (n = 0; n < count; n += LANES)
            *(vec *)(scores + n) = softcap * (1.0f - 2.0f / (1.0f + exponential(load(scores + n) * (2.0f / softcap))));
    for (n = 0; n < count; n++)
        if (!(scores[n] <= largest)) largest = scores[n]; /* so that NaN stays */
    const int64_t padded = (count + LANES - 1) / LANES * LANES;
    for (n = count; n < padded; n++) scores[n] = -INFINITY;
    vec part = all(0);
    for (n = 0; n < padded; n += LANES) {
        vec e = exponential(load(scores + n) - largest);
        *(vec *)(scores + n) = e;
        part += e;
    }
    float sum = total(part);
    for (n = count; n < padded; n++) sum -= scores[n];
    const float inverse = 1.0f / sum;
    int64_t i = 0;
    for (; i + LANES <= head; i += LANES) {
        vec mixed = all(0);
        for (int64_t n = 0; n < count; n++) mixed += scores[n] * load(values + n * head + i);
        *(vec *)(out + i) = mixed * inverse;
    }
    for (; i < head; i++) {
        float mixed = 0;
        for (int64_t n = 0; n < count; n++) mixed += scores[n] * values[n * head + i];
        out[i] = mixed * inverse;
    }
}

/* Outputs of the product that queries, keys and values are, and of the queries among them. */
static int64_t stacked(const Model *m) { return (m->queries + 2 * m->key_heads) * m->head; }
static int64_t queried(const Model *m) { return m->queries * m->head; }

/* Floats of the scratch that trivium_decode wants. */
int64_t trivium_scratch(const Model *m, int64_t threads, int64_t tokens) {
    const int64_t each = 2 * m->width + stacked(m) + queried(m) + 2 * m->layer->up.outputs;
    return tokens * each + threads * (m->room + LANES);
}

/* hidden [tokens, width] in place; row and place: of each token in the cache, each row's tokens in ascending order. */
void trivium_decode(const Model *model, int64_t threads, int64_t tokens, float *hidden, const int64_t *row,
                    const int64_t *place, float *scratch) {
    const Model m = *model;
    const int64_t wide = stacked(&m), across = queried(&m), width = m.layer->up.outputs; /* the same in all layers */
    const int64_t group = m.queries / m.key_heads;
    float *normed = scratch, *added = normed + tokens * m.width, *made = added + tokens * m.width;
    float *mixed = made + tokens * wide, *inner = mixed + tokens * across, *gate = inner + tokens * width;
    float *spare = gate + tokens * width;
#pragma omp parallel num_threads(threads)
    {
        const int me = omp_get_thread_num(), all_threads = omp_get_num_threads();
        float *scores = spare + me * (m.room + LANES);
        int64_t from, to;
        for (int64_t number = 0; number < m.layers; number++) {
            const Layer *l = m.layer + number;
            share(tokens, me, all_threads, &from, &to);
            for (int64_t t = from; t < to; t++)
                normalise(hidden + t * m.width, &l->attention_norm, m.width, m.eps, m.rms, normed + t * m.width);
#pragma omp barrier
            multiply(&l->together, tokens, normed, m.width, made, wide, me, all_threads);
#pragma omp barrier
            const Norm query_norm = {l->query_norm, 0}, key_norm = {l->key_norm, 0};
            if (l->query_norm && m.whole_heads) {
                share(tokens, me, all_threads, &from, &to);
                for (int64_t t = from; t < to; t++) {
                    float *query = made + t * wide, *key = query + across;
                    normalise(query, &query_norm, across, m.eps, 1, query);
                    normalise(key, &key_norm, m.key_heads * m.head, m.eps, 1, key);
                }
#pragma omp barrier
            }
            share(tokens * m.key_heads, me, all_threads, &from, &to);
            for (int64_t item = from; item < to; item++) {
                const int64_t t = item / m.key_heads, k = item % m.key_heads;
                float *query = made + t * wide + k * group * m.head, *key = made + t * wide + across + k * m.head;
                for (int64_t q = 0; q < group; q++) {
                    float *own = query + q * m.head;
                    if (l->query_norm && !m.whole_heads) normalise(own, &query_norm, m.head, m.eps, 1, own);
                    if (l->cosine) turn(own, l->cosine + t * m.turned, l->sine + t * m.turned / 2, m.turned);
                }
                if (l->key_norm && !m.whole_heads) normalise(key, &key_norm, m.head, m.eps, 1, key);
                if (l->cosine) turn(key, l->cosine + t * m.turned, l->sine + t * m.turned / 2, m.turned);
                const int64_t at = ((row[t] * m.key_heads + k) * m.room + place[t]) * m.head;
                memcpy(l->keys + at, key, m.head * sizeof(float));
                memcpy(l->values + at, key + m.key_heads * m.head, m.head * sizeof(float));
            }
#pragma omp barrier
            for (int64_t item = from; item < to; item++) {
                const int64_t t = item / m.key_heads, k = item % m.key_heads;
                const int64_t last = place[t] + 1, first = l->window && last > l->window ? last - l->window : 0;
                const int64_t at = ((row[t] * m.key_heads + k) * m.room + first) * m.head;
                for (int64_t q = k * group; q < (k + 1) * group; q++)
                    attend(made + t * wide + q * m.head, l->keys + at, l->values + at, last - first, m.head, m.scale,
                           m.softcap, scores, mixed + t * across + q * m.head);
            }
#pragma omp barrier
            multiply(&l->output, tokens, mixed, across, added, m.width, me, all_threads);
#pragma omp barrier
            share(tokens, me, all_threads, &from, &to);
            for (int64_t t = from; t < to; t++) {
                float *stream = hidden + t * m.width, *branch = added + t * m.width;
                normalise(branch, &l->attention_output_norm, m.width, m.eps, m.rms, branch);
                if (!m.parallel) add(stream, branch, m.width);
                normalise(stream, &l->mlp_norm, m.width, m.eps, m.rms, normed + t * m.width);
            }
#pragma omp barrier
            multiply(&l->up, tokens, normed, m.width, inner, width, me, all_threads);
            if (l->gate.weight) multiply(&l->gate, tokens, normed, m.width, gate, width, me, all_threads);
            share(blocks_of(&l->up), me, all_threads, &from, &to); /* the same outputs */
            for (int64_t t = 0; t < tokens; t++)
                for (int64_t i = from * LANES; i < to * LANES && i < width; i += LANES) {
                    float *x = (l->gate.weight ? gate : inner) + t * width + i, *y = inner + t * width + i;
                    vec slope; /* not wanted */
                    if (i + LANES <= width) {
                        vec changed = activated(load(x), m.activation, &slope);
                        if (l->gate.weight) changed *= load(y);
                        *(vec *)y = changed;
                        continue;
                    }
                    for (int64_t j = 0; j < width - i; j++) {
                        float changed = activated(all(x[j]), m.activation, &slope)[0];
                        y[j] = l->gate.weight ? changed * y[j] : changed;
                    }
                }
#pragma omp barrier
            multiply(&l->down, tokens, inner, width, normed, m.width, me, all_threads);
#pragma omp barrier
            share(tokens, me, all_threads, &from, &to);
            for (int64_t t = from; t < to; t++) {
                float *stream = hidden + t * m.width, *branch = normed + t * m.width;
                normalise(branch, &l->mlp_output_norm, m.width, m.eps, m.rms, branch);
                if (m.parallel) add(stream, added + t * m.width, m.width);
                add(stream, branch, m.width);
            } /* the next block begins with the same rows, so nobody has to wait */
        }
    }
}

/* x [tokens, inputs] -> out [tokens, outputs]. */
void trivium_multiply(const Product *p, int64_t threads, int64_t tokens, const float *x, float *out) {
#pragma omp parallel num_threads(threads)
    multiply(p, tokens, x, p->inputs, out, p->outputs, omp_get_thread_num(), omp_get_num_threads());
}

int64_t trivium_lanes(void) { return LANES; }
