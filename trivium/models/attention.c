/* Attention inside each sequence of a ragged batch, and its derivative (see native_attention.py, which calls it).
 *
 * Scores exist for a block of queries and keys at a time, in the cache (Dao 2023, arXiv:2307.08691). All products of a
 * block are tiles of TALL rows and WIDE columns on copies that stand as they are read, filled up with zeros. What one
 * head of one sequence needs is computed by one thread in a fixed order, so neither the number of threads nor the rest
 * of the batch changes a result.
 */
#include <math.h>
#include <omp.h>
#include <stdlib.h>

#include "vectors.h"

#define WIDE (2 * LANES)
#define QUERIES 64 /* of a block; a multiple of TALL */
#define KEYS 64    /* of a block; a multiple of WIDE and of TALL */
#define AHEAD 12   /* rows */

typedef struct {
    const float *query, *key, *value; /* [T, H, C], and [N, K, C] twice */
    float *out;                       /* [T, H, C] */
    float *logsums;                   /* [T, H] logarithm of the sum of e^score, or NULL where no derivative is wanted */
    const float *grad;                /* [T, H, C] of the result; of the backward pass alone, as the next three */
    float *to_query, *to_key, *to_value;
    const int64_t *start, *key_start; /* [sequences + 1] where each begins among the queries, and among the keys */
    const int64_t *prefix;            /* [sequences] first keys that all of its queries see; or NULL */
    int64_t query_step, key_step, value_step, grad_step; /* from a token to the next */
    int64_t sequences, heads, key_heads, width;          /* H, K, C */
    int64_t causal, window;                              /* window: keys seen up to the query's own, 0 for all */
    int64_t derives;                                     /* whether this is the backward pass */
    float scale;
} Attention;

/* One sequence of an Attention; filled: keys, and width, in whole tiles. */
typedef struct {
    int64_t start, queries, key_start, keys, prefix;
    int64_t filled_keys, filled_width;
} Sequence;

static int64_t filled(int64_t count, int64_t to) { return (count + to - 1) / to * to; }
static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

static Sequence sequence(const Attention *a, int64_t number) {
    Sequence s = {a->start[number], a->start[number + 1] - a->start[number], a->key_start[number],
                  a->key_start[number + 1] - a->key_start[number], a->prefix ? a->prefix[number] : 0};
    s.filled_keys = filled(s.keys, WIDE);
    s.filled_width = filled(a->width, WIDE);
    return s;
}

/* The keys that a query sees, from the first one on; neither bound falls from a query to the next. */
static int64_t first_key(const Attention *a, int64_t query) { return a->window ? larger(0, query + 1 - a->window) : 0; }
static int64_t end_key(const Attention *a, const Sequence *s, int64_t query) {
    return a->causal ? smaller(s->keys, larger(query + 1, s->prefix)) : s->keys;
}

/* c [TALL, WIDE] = or += A [TALL, depth] b [depth, WIDE], where A_rn = a[r * by_row + n * by_depth]. */
INLINE void tile(int64_t depth, const float *a, const int64_t by_row, const int64_t by_depth, const float *b,
                 int64_t b_step, float *c, int64_t c_step, const int add) {
    vec sum[2 * TALL];
    UNROLLED for (int r = 0; r < TALL; r++)
        UNROLLED for (int v = 0; v < 2; v++) sum[2 * r + v] = add ? load(c + r * c_step + v * LANES) : all(0);
    for (int64_t n = 0; n < depth; n++) {
        const vec first = load(b + n * b_step), second = load(b + n * b_step + LANES);
        UNROLLED for (int r = 0; r < TALL; r++) {
            const float x = a[r * by_row + n * by_depth];
            sum[2 * r] += x * first;
            sum[2 * r + 1] += x * second;
        }
    }
    UNROLLED for (int r = 0; r < TALL; r++)
        UNROLLED for (int v = 0; v < 2; v++) *(vec *)(c + r * c_step + v * LANES) = sum[2 * r + v];
}

/* scores [TALL, WIDE] of a strip of queries and a panel of keys. */
static void score(int64_t width, const float *strip, const float *panel, float *scores) {
    tile(width, strip, 1, TALL, panel, WIDE, scores, KEYS, 0);
}

/* out [TALL, columns] += scores [TALL, keys] times the rows of keys or values. */
static void mix(int64_t keys, const float *scores, const float *rows, int64_t columns, float *out) {
    for (int64_t c = 0; c < columns; c += WIDE) tile(keys, scores, KEYS, 1, rows + c, columns, out + c, columns, 1);
}

/* out [TALL keys, columns] += (scores [queries, TALL])^T times the rows of queries or gradients. */
static void mix_back(int64_t queries, const float *scores, const float *rows, int64_t columns, float *out) {
    for (int64_t c = 0; c < columns; c += WIDE) tile(queries, scores, 1, KEYS, rows + c, columns, out + c, columns, 1);
}

/* Rows lie far apart, where the processor does not foresee them. */
INLINE void fetch(const float *from, int64_t step, int64_t row, int64_t count, int64_t width) {
    const float *ahead = from + smaller(row + AHEAD, count - 1) * step;
    for (int64_t c = 0; c < width; c += 16) __builtin_prefetch(ahead + c);
}

/* [count rows of width] -> [most, columns] times scale, with zeros around. */
static void copy_rows(const float *from, int64_t step, int64_t count, int64_t width, float scale, int64_t most,
                      int64_t columns, float *to) {
    for (int64_t n = 0; n < most; n++, to += columns) {
        if (n >= count) {
            memset(to, 0, columns * sizeof(float));
            continue;
        }
        fetch(from, step, n, count, width);
        for (int64_t c = 0; c < width; c++) to[c] = from[n * step + c] * scale;
        for (int64_t c = width; c < columns; c++) to[c] = 0;
    }
}

/* [count rows of width] -> panels [most / tall][width][tall] times scale: rows stand beside each other. */
INLINE void copy_panels(const float *from, int64_t step, int64_t count, int64_t width, float scale, int64_t most,
                        const int64_t tall, float *to) {
    for (int64_t n = 0; n < most; n++) {
        float *own = to + n / tall * width * tall + n % tall;
        if (n < count) fetch(from, step, n, count, width);
        for (int64_t c = 0; c < width; c++) own[c * tall] = n < count ? from[n * step + c] * scale : 0;
    }
}

static void copy_strips(const float *from, int64_t step, int64_t count, int64_t width, float scale, float *to) {
    copy_panels(from, step, count, width, scale, filled(count, TALL), TALL, to);
}

/* Which lanes of a vector at column c are columns from `from` to `end`. */
INLINE whole within(int64_t c, int64_t from, int64_t end) {
    whole lane;
    for (int i = 0; i < LANES; i++) lane[i] = i;
    lane += (int32_t)c;
    return (lane >= (int32_t)from) & (lane < (int32_t)end);
}

/* Of numbers; none of them is NaN. */
INLINE float greatest(vec x) {
#ifdef __AVX512F__
    return _mm512_reduce_max_ps((__m512)x);
#else
    float top = x[0];
    for (int i = 1; i < LANES; i++) top = x[i] > top ? x[i] : top;
    return top;
#endif
}

INLINE float dot(const float *a, const float *b, int64_t count) {
    vec part = all(0);
    float rest = 0;
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) part += load(a + i) * load(b + i);
    for (; i < count; i++) rest += a[i] * b[i];
    return total(part) + rest;
}

/* Columns of a block of keys from `block` on that a strip of queries from `query` on sees, in whole panels. */
static void seen(const Attention *a, const Sequence *s, int64_t query, int64_t block, int64_t *from, int64_t *end) {
    *from = larger(0, first_key(a, query) - block) / WIDE * WIDE;
    *end = filled(smaller(KEYS, end_key(a, s, query + TALL - 1) - block), WIDE);
}

/* The results of one head of one sequence. */
static void forward(const Attention *a, const Sequence *s, int64_t head, float *scratch) {
    const int64_t C = a->width, columns = s->filled_width, key_head = head / (a->heads / a->key_heads);
    const float *query = a->query + s->start * a->query_step + head * C;
    float *panels = scratch, *values = panels + s->filled_keys * C, *strips = values + s->filled_keys * columns;
    float *scores = strips + QUERIES * C, *mixed = scores + QUERIES * KEYS, *largest = mixed + QUERIES * columns;
    float *sums = largest + QUERIES; /* [QUERIES, LANES], to be added up in the end */
    copy_panels(a->key + s->key_start * a->key_step + key_head * C, a->key_step, s->keys, C, 1, s->filled_keys, WIDE,
                panels);
    copy_rows(a->value + s->key_start * a->value_step + key_head * C, a->value_step, s->keys, C, 1, s->filled_keys,
              columns, values);
    for (int64_t begin = 0; begin < s->queries; begin += QUERIES) {
        const int64_t count = smaller(QUERIES, s->queries - begin), last = begin + count - 1;
        copy_strips(query + begin * a->query_step, a->query_step, count, C, a->scale, strips);
        memset(mixed, 0, filled(count, TALL) * columns * sizeof(float));
        memset(sums, 0, QUERIES * LANES * sizeof(float));
        for (int64_t r = 0; r < QUERIES; r++) largest[r] = -INFINITY;
        for (int64_t block = first_key(a, begin) / KEYS * KEYS; block < end_key(a, s, last); block += KEYS)
            for (int64_t row = 0; row < count; row += TALL) {
                int64_t from, end;
                seen(a, s, begin + row, block, &from, &end);
                if (from >= end) continue;
                float *own = scores + row * KEYS;
                for (int64_t c = from; c < end; c += WIDE)
                    score(C, strips + row * C, panels + (block + c) * C, own + c);
                for (int64_t r = row; r < row + TALL; r++, own += KEYS) {
                    const int64_t low = first_key(a, begin + r) - block, high = end_key(a, s, begin + r) - block;
                    const int whole_row = low <= from && high >= end;
                    vec part = all(-INFINITY), sum = load(sums + r * LANES);
                    for (int64_t c = from; c < end; c += LANES) {
                        if (!whole_row) *(vec *)(own + c) = chosen(within(c, low, high), load(own + c), all(-INFINITY));
                        part = most(part, load(own + c));
                    }
                    const float top = greatest(part);
                    if (top > largest[r]) {
                        if (largest[r] > -INFINITY) {
                            const float shrink = expf(largest[r] - top);
                            sum *= shrink;
                            for (int64_t c = 0; c < columns; c += LANES) *(vec *)(mixed + r * columns + c) *= shrink;
                        }
                        largest[r] = top;
                    }
                    for (int64_t c = from; c < end; c += LANES) {
                        vec e = power(most(load(own + c) - largest[r], all(-87.0f)));
                        if (!whole_row) e = chosen(within(c, low, high), e, all(0));
                        *(vec *)(own + c) = e;
                        sum += e;
                    }
                    *(vec *)(sums + r * LANES) = sum;
                }
                mix(smaller(end, s->keys - block) - from, scores + row * KEYS + from, values + (block + from) * columns,
                    columns, mixed + row * columns);
            }
        for (int64_t r = 0; r < count; r++) {
            const int64_t at = (s->start + begin + r) * a->heads + head;
            const float sum = total(load(sums + r * LANES)), inverse = s->keys ? 1 / sum : 0; /* no keys add nothing */
            for (int64_t c = 0; c < C; c++) a->out[at * C + c] = mixed[r * columns + c] * inverse;
            if (a->logsums) a->logsums[at] = s->keys ? largest[r] + logf(sum) : 0;
        }
    }
}

/* The gradients of a key head of one sequence, and of the query heads that look at it. */
static void backward(const Attention *a, const Sequence *s, int64_t key_head, float *scratch) {
    const int64_t C = a->width, columns = s->filled_width, group = a->heads / a->key_heads;
    const float *key = a->key + s->key_start * a->key_step + key_head * C;
    const float *value = a->value + s->key_start * a->value_step + key_head * C;
    const int64_t panel = s->filled_keys * C, row_size = s->filled_keys * columns, square = QUERIES * KEYS;
    float *key_panels = scratch, *value_panels = key_panels + panel, *keys = value_panels + panel;
    float *to_keys = keys + row_size, *to_values = to_keys + row_size, *query_strips = to_values + row_size;
    float *grad_strips = query_strips + QUERIES * C, *queries = grad_strips + QUERIES * C;
    float *grads = queries + QUERIES * columns, *to_queries = grads + QUERIES * columns;
    float *chances = to_queries + QUERIES * columns, *slopes = chances + square;
    float *logsums = slopes + square, *dots = logsums + QUERIES;
    copy_panels(key, a->key_step, s->keys, C, 1, s->filled_keys, WIDE, key_panels);
    copy_panels(value, a->value_step, s->keys, C, 1, s->filled_keys, WIDE, value_panels);
    copy_rows(key, a->key_step, s->keys, C, 1, s->filled_keys, columns, keys);
    memset(to_keys, 0, 2 * row_size * sizeof(float));
    for (int64_t head = key_head * group; head < (key_head + 1) * group; head++)
        for (int64_t begin = 0; begin < s->queries; begin += QUERIES) {
            const int64_t count = smaller(QUERIES, s->queries - begin), last = begin + count - 1;
            const int64_t rows = filled(count, TALL);
            const float *query = a->query + (s->start + begin) * a->query_step + head * C;
            const float *grad = a->grad + (s->start + begin) * a->grad_step + head * C;
            copy_strips(query, a->query_step, count, C, a->scale, query_strips);
            copy_strips(grad, a->grad_step, count, C, 1, grad_strips);
            copy_rows(query, a->query_step, count, C, a->scale, rows, columns, queries);
            copy_rows(grad, a->grad_step, count, C, 1, rows, columns, grads);
            memset(to_queries, 0, rows * columns * sizeof(float));
            for (int64_t r = 0; r < rows; r++) {
                const int64_t at = (s->start + begin + r) * a->heads + head;
                dots[r] = r < count ? dot(grads + r * columns, a->out + at * C, C) : 0;
                logsums[r] = r < count ? a->logsums[at] : 0;
            }
            for (int64_t block = first_key(a, begin) / KEYS * KEYS; block < end_key(a, s, last); block += KEYS) {
                const int64_t here = smaller(KEYS, s->filled_keys - block);
                for (int64_t row = 0; row < count; row += TALL) {
                    int64_t from, end;
                    seen(a, s, begin + row, block, &from, &end);
                    end = larger(from, end);
                    for (int64_t c = from; c < end; c += WIDE) {
                        score(C, query_strips + row * C, key_panels + (block + c) * C, chances + row * KEYS + c);
                        score(C, grad_strips + row * C, value_panels + (block + c) * C, slopes + row * KEYS + c);
                    }
                    for (int64_t r = row; r < row + TALL; r++) {
                        float *own = chances + r * KEYS, *slope = slopes + r * KEYS;
                        const int64_t low = first_key(a, begin + r) - block, high = end_key(a, s, begin + r) - block;
                        const int whole_row = low <= from && high >= end;
                        for (int64_t c = from; c < end; c += LANES) {
                            vec e = power(least(most(load(own + c) - logsums[r], all(-87.0f)), all(0.0f)));
                            if (!whole_row) e = chosen(within(c, low, high), e, all(0));
                            *(vec *)(own + c) = e;
                            *(vec *)(slope + c) = e * (load(slope + c) - dots[r]);
                        }
                        for (int64_t c = 0; c < here; c += WIDE)
                            if (c < from || c >= end) {
                                memset(own + c, 0, WIDE * sizeof(float));
                                memset(slope + c, 0, WIDE * sizeof(float));
                            }
                    }
                    if (from < end)
                        mix(smaller(end, s->keys - block) - from, slopes + row * KEYS + from,
                            keys + (block + from) * columns, columns, to_queries + row * columns);
                }
                for (int64_t k = 0; k < here && block + k < s->keys; k += TALL) {
                    /* Queries before a key do not see it, unless it is one of those that all see. */
                    const int64_t row = a->causal && block + k >= s->prefix ? larger(0, block + k - begin) : 0;
                    if (row >= count) continue;
                    const int64_t at = (block + k) * columns, from = row * KEYS + k;
                    mix_back(count - row, chances + from, grads + row * columns, columns, to_values + at);
                    mix_back(count - row, slopes + from, queries + row * columns, columns, to_keys + at);
                }
            }
            for (int64_t r = 0; r < count; r++) {
                float *to = a->to_query + ((s->start + begin + r) * a->heads + head) * C;
                for (int64_t c = 0; c < C; c++) to[c] = to_queries[r * columns + c] * a->scale;
            }
        }
    for (int64_t n = 0; n < s->keys; n++)
        for (int64_t c = 0; c < C; c++) {
            const int64_t at = ((s->key_start + n) * a->key_heads + key_head) * C + c;
            a->to_key[at] = to_keys[n * columns + c];
            a->to_value[at] = to_values[n * columns + c];
        }
}

/* Results or gradients of all heads. Returns 0, or 1 if there is no memory for the copies. */
int64_t trivium_attention(const Attention *a, int64_t threads) {
    const int64_t heads = a->derives ? a->key_heads : a->heads, items = a->sequences * heads;
    const int64_t columns = filled(a->width, WIDE), either = a->width + columns;
    int64_t longest = 0;
    for (int64_t n = 0; n < a->sequences; n++) longest = larger(longest, sequence(a, n).filled_keys);
    int64_t size = longest * either + QUERIES * (KEYS + either + 1 + LANES);
    if (a->derives) size = longest * (2 * either + columns) + QUERIES * (2 * KEYS + 2 * either + columns + 2);
    size = filled(size, 16);
    float *scratch = aligned_alloc(64, threads * size * sizeof(float));
    if (!scratch) return 1;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t item = 0; item < items; item++) {
        const Sequence s = sequence(a, item / heads);
        (a->derives ? backward : forward)(a, &s, item % heads, scratch + omp_get_thread_num() * size);
    }
    free(scratch);
    return 0;
}
