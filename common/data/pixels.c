/* Pillow's resize and affine transform of RGB images, to the bit, on vectors of pixels.
 *
 * Images are Pillow's own memory: rows of four bytes a pixel, the fourth unused and 255.
 * Pillow's arithmetic decides every pixel: resize sums 22-bit integer weights, across and
 * then down, and rounds to bytes between the two; transform is in double precision and
 * truncates. Here four channels, or up to sixteen values of a row, go through it at once.
 * Compile with -ffp-contract=off: a fused multiply-add would round otherwise.
 */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifdef __SSE4_1__
#include <immintrin.h>
#endif

typedef uint8_t bytes4 __attribute__((vector_size(4)));
typedef uint8_t bytes8 __attribute__((vector_size(8)));
typedef int32_t ints4 __attribute__((vector_size(16)));
typedef int32_t ints8 __attribute__((vector_size(32)));
typedef double doubles4 __attribute__((vector_size(32)));
typedef double doubles8 __attribute__((vector_size(64)));

enum { BILINEAR = 2, BICUBIC = 3 };                     /* Pillow's numbers */
enum { WEIGHT_BITS = 22, HALF = 1 << (WEIGHT_BITS - 1) };

/* Compilers convert short vectors one element after another; the processor does not. */

static inline ints4 load4(const uint8_t *from) {
#ifdef __SSE4_1__
    int32_t bits;
    memcpy(&bits, from, 4);
    return (ints4)_mm_cvtepu8_epi32(_mm_cvtsi32_si128(bits));
#else
    bytes4 bytes;
    memcpy(&bytes, from, 4);
    return __builtin_convertvector(bytes, ints4);
#endif
}

static inline ints8 load8(const uint8_t *from) {
#ifdef __AVX2__
    return (ints8)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)from));
#else
    bytes8 bytes;
    memcpy(&bytes, from, 8);
    return __builtin_convertvector(bytes, ints8);
#endif
}

static inline doubles4 to_doubles4(ints4 values) {
    return __builtin_convertvector(values, doubles4);
}

static inline doubles8 to_doubles8(ints8 values) {
#ifdef __AVX512F__
    return (doubles8)_mm512_cvtepi32_pd((__m256i)values);
#else
    return __builtin_convertvector(values, doubles8);
#endif
}

/* Write four values, cut to 0 to 255. */
static inline void store4(uint8_t *to, ints4 values) {
#ifdef __SSE4_1__
    __m128i words = _mm_packs_epi32((__m128i)values, (__m128i)values);
    int32_t bits = _mm_cvtsi128_si32(_mm_packus_epi16(words, words));
    memcpy(to, &bits, 4);
#else
    values &= ~(values >> 31);
    values = (values | (values > 255)) & 255;
    bytes4 bytes = __builtin_convertvector(values, bytes4);
    memcpy(to, &bytes, 4);
#endif
}

/* As many values as the processor takes at once. */
#ifdef __AVX512F__
typedef int32_t wide __attribute__((vector_size(64)));

static inline wide load_wide(const uint8_t *from) {
    return (wide)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)from));
}

static inline void store_wide(uint8_t *to, wide values) {
    __m512i positive = _mm512_max_epi32((__m512i)values, _mm512_setzero_si512());
    _mm_storeu_si128((__m128i *)to, _mm512_cvtusepi32_epi8(positive));
}
#elif defined(__AVX2__)
typedef ints8 wide;

static inline wide load_wide(const uint8_t *from) {
    return load8(from);
}

static inline void store_wide(uint8_t *to, wide values) {
    ints4 halves[2];
    memcpy(halves, &values, sizeof(values));
    store4(to, halves[0]);
    store4(to + 4, halves[1]);
}
#else
typedef ints4 wide;

static inline wide load_wide(const uint8_t *from) {
    return load4(from);
}

static inline void store_wide(uint8_t *to, wide values) {
    store4(to, values);
}
#endif

enum { LANES = 4, COLUMNS = 4 };                        /* rows and columns at a time, across */
enum { WIDE = sizeof(wide) / 4, PARTS = 4 * LANES / WIDE };

/* ---- Resize ---- */

typedef struct {                    /* where each output of one axis comes from */
    int reach;                      /* weights kept for each output */
    int *first, *count;             /* [outputs]: inputs from `first` on, `count` of them */
    int most;                       /* the largest count */
    int32_t *weights;               /* [outputs][reach], 0 beyond the count */
    double *exact;                  /* [reach] */
} Axis;

static double weigh(int filter, double x) {
    x = fabs(x);
    if (filter == BILINEAR) return x < 1.0 ? 1.0 - x : 0.0;
    if (x < 1.0) return (1.5 * x - 2.5) * x * x + 1;
    if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * -0.5;
    return 0.0;
}

static void release_axis(Axis *axis) {
    free(axis->first);
    free(axis->weights);
    free(axis->exact);
}

/* Weights of outputs [start, start + count) when `in` pixels become `out`. 0: no memory. */
static int build_axis(Axis *axis, int in, int out, int start, int count, int filter) {
    double scale = (double)in / out, stretch = scale < 1.0 ? 1.0 : scale;
    double support = (filter == BILINEAR ? 1.0 : 2.0) * stretch, inverse = 1.0 / stretch;
    axis->reach = (int)ceil(support) * 2 + 1;
    axis->first = malloc(2 * (size_t)count * sizeof(int));
    axis->weights = calloc((size_t)count * axis->reach, sizeof(int32_t));
    axis->exact = malloc(axis->reach * sizeof(double));
    if (!axis->first || !axis->weights || !axis->exact) return 0;
    axis->count = axis->first + count;
    for (int i = 0; i < count; i++) {
        double centre = (start + i + 0.5) * scale, sum = 0.0;
        int first = (int)(centre - support + 0.5), end = (int)(centre + support + 0.5);
        if (first < 0) first = 0;
        if (end > in) end = in;
        for (int j = 0; j < end - first; j++) {
            axis->exact[j] = weigh(filter, (j + first - centre + 0.5) * inverse);
            sum += axis->exact[j];
        }
        for (int j = 0; j < end - first; j++) {
            double weight = (sum != 0.0 ? axis->exact[j] / sum : axis->exact[j])
                            * (1 << WEIGHT_BITS);
            weight += weight < 0 ? -0.5 : 0.5;
            axis->weights[(size_t)i * axis->reach + j] = (int32_t)weight;
        }
        axis->first[i] = first;
        axis->count[i] = end - first;
        if (end - first > axis->most) axis->most = end - first;
    }
    return 1;
}

/* Copy columns begin to end of LANES rows to `block`, pixel by pixel: those of one column lie
 * side by side. Rows from `lanes` on repeat the last. */
static void interleave(const uint8_t *in, size_t stride, int lanes, int begin, int end,
                       uint8_t *block) {
    const uint8_t *rows[LANES];
    for (int lane = 0; lane < LANES; lane++)
        rows[lane] = in + stride * (lane < lanes ? lane : lanes - 1);
    int x = begin;
#ifdef __SSE4_1__
    for (; x + 4 <= end; x += 4, block += 16 * LANES) {
        __m128i row[LANES], pair[LANES];
        for (int lane = 0; lane < LANES; lane++)
            row[lane] = _mm_loadu_si128((const __m128i *)(rows[lane] + 4 * (size_t)x));
        for (int i = 0; i < LANES / 2; i++) {
            pair[2 * i] = _mm_unpacklo_epi32(row[2 * i], row[2 * i + 1]);
            pair[2 * i + 1] = _mm_unpackhi_epi32(row[2 * i], row[2 * i + 1]);
        }
        __m128i *to = (__m128i *)block;
        _mm_storeu_si128(to, _mm_unpacklo_epi64(pair[0], pair[2]));
        _mm_storeu_si128(to + 1, _mm_unpackhi_epi64(pair[0], pair[2]));
        _mm_storeu_si128(to + 2, _mm_unpacklo_epi64(pair[1], pair[3]));
        _mm_storeu_si128(to + 3, _mm_unpackhi_epi64(pair[1], pair[3]));
    }
#endif
    for (; x < end; x++)
        for (int lane = 0; lane < LANES; lane++, block += 4)
            memcpy(block, rows[lane] + 4 * (size_t)x, 4);
}

/* Sum up the LANES pixels of output column x. All columns have as many weights: the processor
 * cannot guess a count that changes. from: the first input column. */
static inline void sum_columns(const uint8_t *from, const Axis *axis, int x, wide sums[PARTS]) {
    const int32_t *weights = axis->weights + (size_t)x * axis->reach;
    for (int part = 0; part < PARTS; part++) sums[part] = (wide){} + HALF;
    for (int j = 0; j < axis->most; j++, from += 4 * LANES)
        for (int part = 0; part < PARTS; part++)
            sums[part] += load_wide(from + WIDE * part) * weights[j];
    for (int part = 0; part < PARTS; part++) sums[part] >>= WEIGHT_BITS;
}

/* Resize `rows` rows across, LANES of them at a time, so that each weight is read once for
 * all. `block` is room for LANES rows of `in` and axis->reach pixels more; `out` gets `width`
 * pixels a row. */
static void resize_across(const uint8_t *in, size_t in_stride, int rows, uint8_t *out,
                          size_t out_stride, int width, const Axis *axis, uint8_t *block) {
    int begin = axis->first[0], end = axis->first[width - 1] + axis->count[width - 1];
    for (int row = 0; row < rows; row += LANES) {
        int lanes = rows - row < LANES ? rows - row : LANES, x = 0;
        interleave(in + in_stride * row, in_stride, lanes, begin, end, block);
        uint8_t *to = out + out_stride * row;
#ifdef __AVX512BW__
        for (; x + COLUMNS <= width && lanes == LANES; x += COLUMNS, to += 4 * COLUMNS) {
            wide sums[COLUMNS];
#pragma GCC unroll 4
            for (int i = 0; i < COLUMNS; i++)
                sum_columns(block + (size_t)4 * LANES * (axis->first[x + i] - begin), axis, x + i,
                            sums + i);
            /* Packing puts the pixels of a row side by side. */
            __m512i *column = (__m512i *)sums;
            __m512i four = _mm512_packus_epi16(_mm512_packs_epi32(column[0], column[1]),
                                               _mm512_packs_epi32(column[2], column[3]));
            __m128i *to_row[LANES];
            for (int lane = 0; lane < LANES; lane++)
                to_row[lane] = (__m128i *)(to + out_stride * lane);
            _mm_storeu_si128(to_row[0], _mm512_castsi512_si128(four));
            _mm_storeu_si128(to_row[1], _mm512_extracti32x4_epi32(four, 1));
            _mm_storeu_si128(to_row[2], _mm512_extracti32x4_epi32(four, 2));
            _mm_storeu_si128(to_row[3], _mm512_extracti32x4_epi32(four, 3));
        }
#endif
        for (; x < width; x++, to += 4) {
            const uint8_t *from = block + (size_t)4 * LANES * (axis->first[x] - begin);
            uint8_t pixels[4 * LANES];
            wide sums[PARTS];
            sum_columns(from, axis, x, sums);
            for (int part = 0; part < PARTS; part++)
                store_wide(pixels + WIDE * part, sums[part]);
            for (int lane = 0; lane < lanes; lane++)
                memcpy(to + out_stride * lane, pixels + 4 * lane, 4);
        }
    }
}

/* Resize `width` columns down: each output row is a sum of input rows.
 * `in` points to its row `first_row`. */
static void resize_down(const uint8_t *in, size_t in_stride, int first_row, uint8_t *out,
                        size_t out_stride, int width, int height, const Axis *axis) {
    size_t row_bytes = 4 * (size_t)width;
    for (int y = 0; y < height; y++, out += out_stride) {
        const int32_t *weights = axis->weights + (size_t)y * axis->reach;
        const uint8_t *from = in + in_stride * (axis->first[y] - first_row);
        size_t x = 0;
        for (; x + 2 * WIDE <= row_bytes; x += 2 * WIDE) {
            wide low = (wide){} + HALF, high = low;
            for (int j = 0; j < axis->count[y]; j++) {
                low += load_wide(from + in_stride * j + x) * weights[j];
                high += load_wide(from + in_stride * j + x + WIDE) * weights[j];
            }
            store_wide(out + x, low >> WEIGHT_BITS);
            store_wide(out + x + WIDE, high >> WEIGHT_BITS);
        }
        for (; x < row_bytes; x += 4) {
            ints4 sums = (ints4){} + HALF;
            for (int j = 0; j < axis->count[y]; j++)
                sums += load4(from + in_stride * j + x) * weights[j];
            store4(out + x, sums >> WEIGHT_BITS);
        }
    }
}

/* Resize the in_width x in_height pixels at `in`, whose rows are in_stride bytes apart, to
 * out_width x out_height, and write the window of width x height at (left, top) of that to
 * `out`. down_first: resize down, then across. Returns 0 if there is no memory. */
int resize_window(const uint8_t *in, int64_t in_stride, int in_width, int in_height,
                  uint8_t *out, int out_width, int out_height,
                  int left, int top, int width, int height, int filter, int down_first) {
    Axis across = {0}, down = {0};
    uint8_t *block = NULL, *between = NULL;             /* between the two passes */
    size_t out_stride = 4 * (size_t)width;
    int done = build_axis(&across, in_width, out_width, left, width, filter)
               && build_axis(&down, in_height, out_height, top, height, filter);
    if (done) {
        block = malloc(4 * LANES * ((size_t)in_width + across.reach));
        done = block != NULL;
    }
    if (done) {
        int first = down.first[0];
        int rows = down.first[height - 1] + down.count[height - 1] - first;
        size_t stride = down_first ? 4 * (size_t)in_width : out_stride;
        between = malloc(stride * (down_first ? height : rows));
        done = between != NULL;
        in += in_stride * first;
        if (done && down_first) {
            resize_down(in, in_stride, first, between, stride, in_width, height, &down);
            resize_across(between, stride, height, out, out_stride, width, &across, block);
        } else if (done) {
            resize_across(in, in_stride, rows, between, stride, width, &across, block);
            resize_down(between, stride, first, out, out_stride, width, height, &down);
        }
    }
    free(between);
    free(block);
    release_axis(&across);
    release_axis(&down);
    return done;
}

/* ---- To three bytes a pixel ---- */

void pack(const uint8_t *in, uint8_t *out, int64_t pixels) {
    int64_t i = 0;
#ifdef __SSE4_1__
    __m128i used = _mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1);
    for (; i + 6 <= pixels; i += 4) {       /* 12 bytes of the 16 written; more follow */
        __m128i four = _mm_loadu_si128((const __m128i *)(in + 4 * i));
        _mm_storeu_si128((__m128i *)(out + 3 * i), _mm_shuffle_epi8(four, used));
    }
#endif
    for (; i < pixels; i++) memcpy(out + 3 * i, in + 4 * i, 3);
}

/* ---- Affine transform ---- */

static inline int clamp(int value, int size) {
    return value < 0 ? 0 : value < size ? value : size - 1;
}

/* The cubic through a, b, c and d at t between b and c. */
static inline doubles4 cubic(doubles4 a, doubles4 b, doubles4 c, doubles4 d, double t) {
    doubles4 p2 = -a + c, p3 = 2 * (a - b) + c - d, p4 = -a + b - c + d;
    return b + t * (p2 + t * (p3 + t * p4));
}

/* The same for a pixel of two rows; differences of whole numbers are exact. */
static inline doubles8 cubic_of_rows(const uint8_t *upper, const uint8_t *lower, const int *x,
                                     double t) {
    ints8 v[4];
    for (int i = 0; i < 4; i++) {
        uint8_t pixels[8];
        memcpy(pixels, upper + x[i], 4);
        memcpy(pixels + 4, lower + x[i], 4);
        v[i] = load8(pixels);
    }
    ints8 p2 = v[2] - v[0], p3 = 2 * (v[0] - v[1]) + v[2] - v[3];
    ints8 p4 = v[1] - v[0] + v[3] - v[2];
    return to_doubles8(v[1])
           + t * (to_doubles8(p2) + t * (to_doubles8(p3) + t * to_doubles8(p4)));
}

static inline ints4 sample_bicubic(const uint8_t *in, int width, int height, int column, int row,
                                   double dx, double dy) {
    const uint8_t *rows[4];
    int x[4];
    for (int i = 0; i < 4; i++) {
        x[i] = 4 * clamp(column + i - 1, width);
        rows[i] = in + 4 * (size_t)width * clamp(row + i - 1, height);
    }
    doubles8 pairs[2] = {cubic_of_rows(rows[0], rows[1], x, dx),
                         cubic_of_rows(rows[2], rows[3], x, dx)};
    doubles4 v[4];
    memcpy(v, pairs, sizeof(v));
    return __builtin_convertvector(cubic(v[0], v[1], v[2], v[3], dy), ints4);
}

static inline ints4 sample_bilinear(const uint8_t *in, int width, int height, int column, int row,
                                    double dx, double dy) {
    const uint8_t *upper = in + 4 * (size_t)width * clamp(row, height);
    const uint8_t *lower = in + 4 * (size_t)width * clamp(row + 1, height);
    int x0 = 4 * clamp(column, width), x1 = 4 * clamp(column + 1, width);
    ints4 a = load4(upper + x0), b = load4(lower + x0);
    doubles4 v0 = to_doubles4(a) + to_doubles4(load4(upper + x1) - a) * dx;
    doubles4 v1 = to_doubles4(b) + to_doubles4(load4(lower + x1) - b) * dx;
    return __builtin_convertvector(v0 + (v1 - v0) * dy, ints4);
}

/* Write to every pixel of `out` whose place m0 x + m1 y + m2, m3 x + m4 y + m5 lies in `in`. */
void transform_affine(const uint8_t *in, uint8_t *out, int width, int height, const double *m,
                      int filter) {
    for (int y = 0; y < height; y++) {
        double out_y = y + 0.5;
        for (int x = 0; x < width; x++, out += 4) {
            double out_x = x + 0.5;
            double in_x = m[0] * out_x + m[1] * out_y + m[2];
            double in_y = m[3] * out_x + m[4] * out_y + m[5];
            if (!(in_x >= 0.0 && in_x < width && in_y >= 0.0 && in_y < height)) continue;
            in_x -= 0.5;
            in_y -= 0.5;
            int column = in_x < 0.0 ? -1 : (int)in_x, row = in_y < 0.0 ? -1 : (int)in_y;
            double dx = in_x - column, dy = in_y - row;
            store4(out, filter == BILINEAR
                        ? sample_bilinear(in, width, height, column, row, dx, dy)
                        : sample_bicubic(in, width, height, column, row, dx, dy));
        }
    }
}
