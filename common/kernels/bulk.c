/* What takes the time of loading and saving gigabytes: transposition of float32 matrices,
 * comparison, and most of CRC-32.
 */

#include <stdint.h>
#include <string.h>

#ifdef __SSE4_1__
#include <immintrin.h>
#endif

enum { ROWS = 16, COLUMNS = 8 };        /* of a tile: 16 floats fill a line of the cache */

#ifdef __AVX__

/* Transpose 8 x 8. Whole lines of the target go past the cache where they are aligned. */
static inline __attribute__((always_inline)) void transpose8(
        const float *from, int64_t from_stride, float *to, int64_t to_stride, const int aligned) {
    __m256 a[8], b[8];
    for (int i = 0; i < 8; i++) a[i] = _mm256_loadu_ps(from + i * from_stride);
    for (int i = 0; i < 8; i += 2) {
        b[i] = _mm256_unpacklo_ps(a[i], a[i + 1]);
        b[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        a[i] = _mm256_shuffle_ps(b[i], b[i + 2], 0x44);
        a[i + 1] = _mm256_shuffle_ps(b[i], b[i + 2], 0xee);
        a[i + 2] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0x44);
        a[i + 3] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0xee);
    }
    for (int i = 0; i < 4; i++) {
        __m256 low = _mm256_permute2f128_ps(a[i], a[i + 4], 0x20);
        __m256 high = _mm256_permute2f128_ps(a[i], a[i + 4], 0x31);
        if (aligned) {
            _mm256_stream_ps(to + i * to_stride, low);
            _mm256_stream_ps(to + (i + 4) * to_stride, high);
        } else {
            _mm256_storeu_ps(to + i * to_stride, low);
            _mm256_storeu_ps(to + (i + 4) * to_stride, high);
        }
    }
}

static inline __attribute__((always_inline)) void transpose_tile(
        const float *from, int64_t from_stride, float *to, int64_t to_stride, const int aligned) {
    transpose8(from, from_stride, to, to_stride, aligned);
    transpose8(from + 8 * from_stride, from_stride, to + 8, to_stride, aligned);
}

#else

static inline void transpose_tile(
        const float *from, int64_t from_stride, float *to, int64_t to_stride, const int aligned) {
    for (int j = 0; j < COLUMNS; j++)
        for (int i = 0; i < ROWS; i++) to[j * to_stride + i] = from[i * from_stride + j];
}

#endif

static inline __attribute__((always_inline)) void transpose_tiles(
        const float *from, int64_t from_stride, float *to, int64_t to_stride,
        int64_t rows, int64_t columns, const int aligned) {
    int64_t i = 0;
    for (; i + ROWS <= rows; i += ROWS) {
        int64_t j = 0;
        for (; j + COLUMNS <= columns; j += COLUMNS)
            transpose_tile(from + i * from_stride + j, from_stride,
                           to + j * to_stride + i, to_stride, aligned);
        for (; j < columns; j++)
            for (int64_t k = i; k < i + ROWS; k++)
                to[j * to_stride + k] = from[k * from_stride + j];
    }
    for (; i < rows; i++)
        for (int64_t j = 0; j < columns; j++) to[j * to_stride + i] = from[i * from_stride + j];
}

/* Write from[rows][columns] to to[columns][rows]; strides are floats from row to row. */
void transpose(const float *from, int64_t from_stride, float *to, int64_t to_stride,
               int64_t rows, int64_t columns) {
    if ((uintptr_t)to % 32 || to_stride % 8) {
        transpose_tiles(from, from_stride, to, to_stride, rows, columns, 0);
        return;
    }
    transpose_tiles(from, from_stride, to, to_stride, rows, columns, 1);
#ifdef __AVX__
    _mm_sfence();
#endif
}

int are_equal(const uint8_t *first, const uint8_t *second, int64_t size) {
    return memcmp(first, second, size) == 0;
}

#if defined(__PCLMUL__) && defined(__SSE4_1__)

static inline __m128i fold(__m128i value, __m128i powers, __m128i next) {
    return _mm_xor_si128(next, _mm_xor_si128(_mm_clmulepi64_si128(value, powers, 0x00),
                                             _mm_clmulepi64_si128(value, powers, 0x11)));
}

/* Write to `folded` 16 bytes that leave a CRC-32 register of zero as the data leave one of
 * `state`; return how much of the data that was: all whole blocks of 64 bytes.
 *
 * Gopal et al., "Fast CRC Computation for Generic Polynomials Using PCLMULQDQ" (Intel, 2009).
 * The constants are powers of x modulo the polynomial, with the bits of each reversed.
 */
int64_t fold_crc(const uint8_t *data, int64_t size, uint32_t state, uint8_t *folded) {
    const __m128i over_64_bytes = _mm_set_epi64x(0x1c6e41596, 0x154442bd4);
    const __m128i over_16_bytes = _mm_set_epi64x(0x0ccaa009e, 0x1751997d0);
    const __m128i *blocks = (const __m128i *)data;
    int64_t count = size / 64;
    if (count == 0) return 0;
    __m128i sums[4];
    for (int i = 0; i < 4; i++) sums[i] = _mm_loadu_si128(blocks + i);
    sums[0] = _mm_xor_si128(sums[0], _mm_cvtsi32_si128((int)state));
    for (int64_t block = 1; block < count; block++)
        for (int i = 0; i < 4; i++)
            sums[i] = fold(sums[i], over_64_bytes, _mm_loadu_si128(blocks + 4 * block + i));
    for (int i = 1; i < 4; i++) sums[i] = fold(sums[i - 1], over_16_bytes, sums[i]);
    _mm_storeu_si128((__m128i *)folded, sums[3]);
    return 64 * count;
}

#else

int64_t fold_crc(const uint8_t *data, int64_t size, uint32_t state, uint8_t *folded) {
    return 0;
}

#endif
