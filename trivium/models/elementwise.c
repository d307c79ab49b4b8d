/* Element-wise parts of a block and of the loss, and their derivatives (see native_elementwise.py, which calls them).
 *
 * Each reads its inputs from memory once; what several formulas of a row share stays in the cache. Rows do not depend on
 * each other, and sums over rows are made of blocks of a fixed size, so the number of threads changes no result.
 */
#include <math.h>
#include <omp.h>

#include "vectors.h"

#define ROWS 64    /* of a block whose sum over rows is one term */
#define PART 16384 /* numbers that one thread takes at a time */

/* Does something for each vector of `width` numbers: `at` is where it begins, `left` how many of its lanes are there,
 * which the compiler knows for all but the last. */
#define EACH_VECTOR(width, ...)                                    \
    do {                                                           \
        int64_t at = 0;                                            \
        for (; at + LANES <= (width); at += LANES) {               \
            const int64_t left = LANES;                            \
            __VA_ARGS__                                            \
        }                                                          \
        if (at < (width)) {                                        \
            const int64_t left = (width)-at;                       \
            __VA_ARGS__                                            \
        }                                                          \
    } while (0)

INLINE vec load_some(const float *from, int64_t count) {
    if (count >= LANES) return load(from);
    vec x = {0};
    for (int64_t i = 0; i < count; i++) x[i] = from[i];
    return x;
}

INLINE void store_some(float *to, int64_t count, vec x) {
    if (count >= LANES) {
        *(vec *)to = x;
        return;
    }
    for (int64_t i = 0; i < count; i++) to[i] = x[i];
}

/* out [rows, width] = x / sqrt(mean(x^2) + eps) * weight; inverse [rows] is the factor of the row. */
void trivium_rms_norm(const float *x, const float *weight, float *out, float *inverse, int64_t rows, int64_t width,
                      float eps, int64_t threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t row = 0; row < rows; row++) {
        const float *in = x + row * width;
        float *to = out + row * width;
        vec squares = all(0);
        EACH_VECTOR(width, const vec v = load_some(in + at, left); squares += v * v;);
        const float factor = 1 / sqrtf(total(squares) / width + eps);
        inverse[row] = factor;
        EACH_VECTOR(width, store_some(to + at, left, load_some(in + at, left) * factor * load_some(weight + at, left)););
    }
}

/* Rows of the scratch `sums` below: one for each block, and at least the one that holds the result. */
int64_t trivium_rms_norm_sums(int64_t rows) { return rows > ROWS ? (rows + ROWS - 1) / ROWS : 1; }

/* The gradient of x, and of the weight unless `sums` is NULL: [trivium_rms_norm_sums(rows), width] of scratch, whose
 * first row holds it in the end. */
void trivium_rms_norm_backward(const float *grad, const float *x, const float *weight, const float *inverse,
                               float *to_x, float *sums, int64_t rows, int64_t width, int64_t threads) {
    const int64_t blocks = trivium_rms_norm_sums(rows);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t block = 0; block < blocks; block++) {
        float *sum = sums ? sums + block * width : 0;
        if (sum) memset(sum, 0, width * sizeof(float));
        for (int64_t row = block * ROWS; row < rows && row < (block + 1) * ROWS; row++) {
            const float *g = grad + row * width, *in = x + row * width;
            float *to = to_x + row * width;
            const float factor = inverse[row];
            vec dots = all(0);
            EACH_VECTOR(width, dots += load_some(g + at, left) * load_some(weight + at, left) * load_some(in + at, left););
            const float pull = total(dots) * factor * factor / width;
            EACH_VECTOR(width,
                        const vec slope = load_some(g + at, left), v = load_some(in + at, left);
                        store_some(to + at, left, (slope * load_some(weight + at, left) - v * pull) * factor);
                        if (sum) store_some(sum + at, left, load_some(sum + at, left) + slope * v * factor););
        }
    }
    for (int64_t block = 1; sums && block < blocks; block++)
        for (int64_t c = 0; c < width; c++) sums[c] += sums[block * width + c];
}

/* up may be NULL: without a gate. */
INLINE void gate_some(const float *gate, const float *up, float *out, int64_t count, const int kind) {
    vec slope;
    EACH_VECTOR(count, const vec other = up ? load_some(up + at, left) : all(1.0f);
                store_some(out + at, left, activated(load_some(gate + at, left), kind, &slope) * other););
}

INLINE void gate_back(const float *grad, const float *gate, const float *up, float *to_gate, float *to_up, float *out,
                      int64_t count, const int kind) {
    vec slope;
    EACH_VECTOR(count,
                const vec g = load_some(grad + at, left), other = up ? load_some(up + at, left) : all(1.0f);
                const vec active = activated(load_some(gate + at, left), kind, &slope);
                store_some(to_gate + at, left, g * other * slope);
                if (up) store_some(to_up + at, left, g * active);
                if (out) store_some(out + at, left, active * other););
}

/* Calls `what` with the kind of activation as a constant. */
#define BY_KIND(kind, what, ...)                                    \
    switch (kind) {                                                 \
        case SILU: what(__VA_ARGS__, SILU); break;                  \
        case GELU_TANH: what(__VA_ARGS__, GELU_TANH); break;        \
        case GELU: what(__VA_ARGS__, GELU); break;                  \
        default: what(__VA_ARGS__, RELU);                           \
    }

/* out = activation(gate) * up, `count` numbers each; up may be NULL. */
void trivium_gated(const float *gate, const float *up, float *out, int64_t count, int64_t kind, int64_t threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t at = 0; at < count; at += PART) {
        const int64_t here = count - at < PART ? count - at : PART;
        BY_KIND(kind, gate_some, gate + at, up ? up + at : 0, out + at, here)
    }
}

/* The gradients of both; out: the result once more, unless NULL. Results may lie where the inputs do. */
void trivium_gated_backward(const float *grad, const float *gate, const float *up, float *to_gate, float *to_up,
                            float *out, int64_t count, int64_t kind, int64_t threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t at = 0; at < count; at += PART) {
        const int64_t here = count - at < PART ? count - at : PART;
        BY_KIND(kind, gate_back, grad + at, gate + at, up ? up + at : 0, to_gate + at, up ? to_up + at : 0,
                out ? out + at : 0, here)
    }
}

/* out [T, heads, width]: each pair (x_i, x_{i + width/2}) turned by its angle, or back.
 * x [T, heads, width] with steps between tokens and heads; cosine [T, width], sine [T, width / 2]. */
void trivium_turn(const float *x, const float *cosine, const float *sine, float *out, int64_t tokens, int64_t heads,
                  int64_t width, int64_t token_step, int64_t head_step, int64_t back, int64_t threads) {
    const int64_t half = width / 2;
    const float sign = back ? -1 : 1;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t token = 0; token < tokens; token++)
        for (int64_t head = 0; head < heads; head++) {
            const float *in = x + token * token_step + head * head_step, *c = cosine + token * width;
            float *to = out + (token * heads + head) * width;
            EACH_VECTOR(half,
                        const vec first = load_some(in + at, left), second = load_some(in + half + at, left);
                        const vec s = sign * load_some(sine + token * half + at, left);
                        store_some(to + at, left, first * load_some(c + at, left) - second * s);
                        store_some(to + half + at, left, second * load_some(c + half + at, left) + first * s););
        }
}

/* logits [rows, width] become probabilities. Of each row: picked, the logarithm of the probability of its goal; right,
 * whether no other is likelier; entropy in nats. */
void trivium_softmax(float *logits, const int64_t *goal, float *picked, float *right, float *entropy, int64_t rows,
                     int64_t width, int64_t threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t row = 0; row < rows; row++) {
        float *x = logits + row * width;
        vec tops = all(-INFINITY);
        for (int64_t c = 0; c + LANES <= width; c += LANES) tops = most(load(x + c), tops);
        float top = -INFINITY;
        for (int i = 0; i < LANES; i++) top = tops[i] > top || tops[i] != tops[i] ? tops[i] : top;
        for (int64_t c = width / LANES * LANES; c < width; c++) top = x[c] > top || x[c] != x[c] ? x[c] : top;
        const float wanted = x[goal[row]];
        vec sums = all(0), moments = all(0);
        const vec floor = all(-87.0f);
        EACH_VECTOR(width, vec shifted = load_some(x + at, left) - top;
                    for (int64_t i = left; i < LANES; i++) shifted[i] = -100.0f;
                    const vec e = chosen(shifted < floor, all(0), power(most(shifted, floor)));
                    sums += e;
                    moments += e * most(shifted, floor);
                    store_some(x + at, left, e););
        const float sum = total(sums), scale = 1 / sum;
        EACH_VECTOR(width, store_some(x + at, left, load_some(x + at, left) * scale););
        picked[row] = wanted - top - logf(sum);
        right[row] = wanted >= top;
        entropy[row] = logf(sum) - total(moments) * scale;
    }
}
