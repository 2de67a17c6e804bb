/* GELU, softmax, LayerNorm's gradients, dropout, in one pass over memory.
 *
 * Sixteen numbers at a time, in the compiler's own vectors, which it maps to whatever the
 * processor has. What is left of a row goes through the same code, with zeros beyond it.
 */

#include <stdint.h>
#include <string.h>

#pragma GCC optimize("fp-contract=fast")    /* nothing here has to round as others do */

typedef float floats __attribute__((vector_size(64)));
typedef int32_t ints __attribute__((vector_size(64)));

enum { LANES = 16 };
#define INLINE static inline __attribute__((always_inline))

INLINE floats load(const float *from, int64_t left) {
    floats values = {0};
    if (left >= LANES)
        memcpy(&values, from, sizeof(values));
    else
        memcpy(&values, from, left * sizeof(float));
    return values;
}

INLINE void store(float *to, floats values, int64_t left) {
    if (left >= LANES)
        memcpy(to, &values, sizeof(values));
    else
        memcpy(to, &values, left * sizeof(float));
}

INLINE floats choose(ints mask, floats yes, floats no) {
    return (floats)((mask & (ints)yes) | (~mask & (ints)no));
}

INLINE floats fill(float value) {
    return (floats){0} + value;
}

INLINE float add_lanes(floats values) {
    float sum = 0;
    for (int i = 0; i < LANES; i++) sum += values[i];
    return sum;
}

/* exp(x) to a few units in the last place, for x from -87 to 88; beyond them as at them. */
INLINE floats exponential(floats x) {
    x = choose(x < -87.0f, fill(-87.0f), x);            /* a NaN stays one */
    x = choose(x > 88.0f, fill(88.0f), x);
    floats shifted = x * 1.44269504f + 12582912.0f;     /* 1.5 * 2^23: rounds to a whole number */
    floats whole = shifted - 12582912.0f;
    floats rest = x - whole * 0.693359375f + whole * 2.12194440e-4f;    /* ln 2, in two parts */
    floats sum = fill(1.0f / 5040);                     /* Taylor's series; |rest| < 0.35 */
    sum = sum * rest + 1.0f / 720;
    sum = sum * rest + 1.0f / 120;
    sum = sum * rest + 1.0f / 24;
    sum = sum * rest + 1.0f / 6;
    sum = sum * rest + 0.5f;
    sum = sum * rest + 1.0f;
    sum = sum * rest + 1.0f;
    return sum * (floats)((__builtin_convertvector(whole, ints) + 127) << 23);
}

/* ---- GELU: x * cdf(x), of Hendrycks and Gimpel, arXiv:1606.08415 ---- */

/* The normal distribution, and its density. Phi(-x) = exp(-x^2 / 2) P(1 / (1 + 0.3 x)) for
 * x >= 0; P is fitted to relative errors below 1e-7 for x up to 13.1, where exp ends. */
INLINE floats compute_cdf(floats x, floats *density) {
    floats power = exponential(x * x * -0.5f);
    floats t = 1.0f / (1.0f + 0.3f * choose(x < 0.0f, -x, x));
    floats tail = fill(0.0388699466f);
    tail = tail * t - 0.171439167f;
    tail = tail * t + 0.233099105f;
    tail = tail * t - 0.0812735063f;
    tail = tail * t + 0.145604261f;
    tail = tail * t + 0.0934747483f;
    tail = tail * t + 0.122204088f;
    tail = tail * t + 0.119451466f;
    tail = tail * t + 9.09288877e-06f;
    tail *= power;
    *density = power * 0.398942280f;                    /* 1 / sqrt(2 pi) */
    *density = choose(x * x > 172.0f, fill(0.0f), *density);    /* times any x, it is nothing */
    return choose(x < 0.0f, tail, 1.0f - tail);
}

/* (1 + tanh(s)) / 2 with s = sqrt(2 / pi) (x + 0.044715 x^3), and its derivative. */
INLINE floats approximate_cdf(floats x, floats *density) {
    floats s = 0.797884561f * x * (1.0f + 0.044715f * x * x);
    floats cdf = 1.0f / (1.0f + exponential(-2.0f * s));
    floats inner = 0.797884561f * (1.0f + 3 * 0.044715f * x * x);
    *density = 2.0f * cdf * (1.0f - cdf) * inner;
    return cdf;
}

INLINE void compute_gelu(const float *x, float *out, int64_t count, const int approximate) {
    for (int64_t i = 0; i < count; i += LANES) {
        floats value = load(x + i, count - i), density;
        floats cdf = approximate ? approximate_cdf(value, &density)
                                 : compute_cdf(value, &density);
        store(out + i, value * cdf, count - i);
    }
}

void gelu(const float *x, float *out, int64_t count, int approximate) {
    if (approximate) compute_gelu(x, out, count, 1);
    else compute_gelu(x, out, count, 0);
}

INLINE void multiply_by_slope(float *grad, const float *x, int64_t count, const int approximate) {
    for (int64_t i = 0; i < count; i += LANES) {
        floats value = load(x + i, count - i), density;
        floats cdf = approximate ? approximate_cdf(value, &density)
                                 : compute_cdf(value, &density);
        store(grad + i, load(grad + i, count - i) * (cdf + value * density), count - i);
    }
}

/* Multiply grad by gelu's derivative at x. */
void gelu_slope(float *grad, const float *x, int64_t count, int approximate) {
    if (approximate) multiply_by_slope(grad, x, count, 1);
    else multiply_by_slope(grad, x, count, 0);
}

/* ---- Softmax, in place, of each row ---- */

void softmax(float *scores, int64_t rows, int64_t width) {
    for (float *row = scores, *end = scores + rows * width; row < end; row += width) {
        float largest = row[0];
        floats most = fill(largest);
        int64_t i = 0;
        for (; i + LANES <= width; i += LANES) {
            floats value = load(row + i, LANES);
            most = choose(value > most, value, most);
        }
        for (; i < width; i++) largest = row[i] > largest ? row[i] : largest;
        for (int lane = 0; lane < LANES; lane++)
            largest = most[lane] > largest ? most[lane] : largest;
        floats sums = {0};
        float sum = 0;
        for (i = 0; i < width; i += LANES) {
            floats power = exponential(load(row + i, width - i) - largest);
            store(row + i, power, width - i);
            if (width - i >= LANES) sums += power;
            else for (int64_t lane = 0; lane < width - i; lane++) sum += power[lane];
        }
        float scale = 1 / (sum + add_lanes(sums));
        for (i = 0; i < width; i += LANES)
            store(row + i, load(row + i, width - i) * scale, width - i);
    }
}

/* grad = probabilities * (grad - sum(probabilities * grad)) */
void softmax_slope(float *grad, const float *probabilities, int64_t rows, int64_t width) {
    for (int64_t row = 0; row < rows; row++, grad += width, probabilities += width) {
        floats sums = {0};
        for (int64_t i = 0; i < width; i += LANES)
            sums += load(grad + i, width - i) * load(probabilities + i, width - i);
        float sum = add_lanes(sums);
        for (int64_t i = 0; i < width; i += LANES) {
            floats slope = load(grad + i, width - i) - sum;
            store(grad + i, slope * load(probabilities + i, width - i), width - i);
        }
    }
}

/* ---- LayerNorm (Ba et al., arXiv:1607.06450) ---- */

/* Write the gradient of the input, and add those of weight and bias to their sums. */
void layer_norm_gradients(const float *grad, const float *x, const float *weight, float epsilon,
                          float *grad_x, float *weight_sum, float *bias_sum,
                          int64_t rows, int64_t width) {
    for (int64_t row = 0; row < rows; row++, grad += width, x += width, grad_x += width) {
        floats sums = {0}, products = {0};
        for (int64_t i = 0; i < width; i += LANES) sums += load(x + i, width - i);
        float mean = add_lanes(sums) / width;
        sums = (floats){0};
        for (int64_t i = 0; i < width; i += LANES) {
            floats centred = load(x + i, width - i) - mean;
            store(grad_x + i, centred, width - i);
            floats kept = load(grad_x + i, width - i);  /* zeros beyond the row */
            sums += kept * kept;
        }
        float scale = 1 / __builtin_sqrtf(add_lanes(sums) / width + epsilon);
        sums = (floats){0};
        for (int64_t i = 0; i < width; i += LANES) {
            floats normal = load(grad_x + i, width - i) * scale;
            floats above = load(grad + i, width - i), inner = above * load(weight + i, width - i);
            sums += inner;
            products += inner * normal;
            store(grad_x + i, normal, width - i);
            store(weight_sum + i, load(weight_sum + i, width - i) + above * normal, width - i);
            store(bias_sum + i, load(bias_sum + i, width - i) + above, width - i);
        }
        float shift = add_lanes(sums) / width, slope = add_lanes(products) / width;
        for (int64_t i = 0; i < width; i += LANES) {
            floats inner = load(grad + i, width - i) * load(weight + i, width - i);
            floats normal = load(grad_x + i, width - i);
            store(grad_x + i, (inner - shift - normal * slope) * scale, width - i);
        }
    }
}

/* ---- Dropout, with Philox4x64-10 (Salmon et al., SC 2011, doi:10.1145/2063384.2063405) ---- */

typedef uint16_t parts __attribute__((vector_size(32)));
typedef int8_t bytes __attribute__((vector_size(16)));

INLINE uint64_t multiply(uint64_t a, uint64_t b, uint64_t *high) {
    unsigned __int128 product = (unsigned __int128)a * b;
    *high = product >> 64;
    return product;
}

/* The 256 bits that belong to a counter, as NumPy's Philox gives them, in 16 parts. */
INLINE parts philox(uint64_t counter, uint64_t key) {
    uint64_t word0 = counter, word1 = 0, word2 = 0, word3 = 0, key0 = key, key1 = 0;
    for (int round = 0; round < 10; round++) {
        uint64_t high0, high2;
        uint64_t low0 = multiply(0xD2E7470EE14C6C93u, word0, &high0);
        uint64_t low2 = multiply(0xCA5A826395121157u, word2, &high2);
        word0 = high2 ^ word1 ^ key0;
        word1 = low2;
        word2 = high0 ^ word3 ^ key1;
        word3 = low0;
        key0 += 0x9E3779B97F4A7C15u;
        key1 += 0xBB67AE8584CAA73Bu;
    }
    uint64_t bits[4] = {word0, word1, word2, word3};
    parts values;
    memcpy(&values, bits, sizeof(values));
    return values;
}

/* Bit j of mask[i]: whether number 16 i + j is kept, that is whether part j of the bits of counter
 * first + i is at least `threshold`, which is below 2^16. */
void draw_mask(uint16_t *mask, int64_t count, uint64_t key, uint64_t first, uint32_t threshold) {
    for (int64_t i = 0; i < count; i++) {
        bytes kept = __builtin_convertvector(philox(first + i, key) >= (uint16_t)threshold, bytes);
        uint64_t halves[2];
        memcpy(halves, &kept, sizeof(halves));
        for (int half = 0; half < 2; half++)    /* the product moves bit 0 of byte n to bit 56 + n */
            halves[half] = (halves[half] & 0x0101010101010101u) * 0x0102040810204080u >> 56;
        mask[i] = halves[0] | halves[1] << 8;
    }
}

/* to = from * scale where the mask's bit is set, else 0. `start`: the bit of the first number. */
void apply_mask(const float *from, float *to, int64_t count, const uint16_t *mask, int64_t start,
                float scale) {
    const ints lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    for (int64_t i = 0; i < count; i += LANES) {
        uint32_t word;
        memcpy(&word, mask + (start + i) / LANES, sizeof(word));
        ints kept = -(((int32_t)(word >> (start + i) % LANES) >> lane) & 1);
        store(to + i, choose(kept, load(from + i, count - i) * scale, fill(0.0f)), count - i);
    }
}
