/* One vector of floats, as wide as the instruction set has them, and what is made of it. */
#ifndef CORELM_VECTORS_H
#define CORELM_VECTORS_H

#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#if defined(__AVX512F__)
#define WIDTH 16 /* floats of a vector */
#elif defined(__AVX2__)
#define WIDTH 8
#else
#define WIDTH 4
#endif

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 32")

typedef float vfloat __attribute__((vector_size(4 * WIDTH)));
typedef int32_t vint __attribute__((vector_size(4 * WIDTH)));
typedef uint32_t vuint __attribute__((vector_size(4 * WIDTH)));
typedef float vfloat_u __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));
typedef uint32_t vuint_u __attribute__((vector_size(4 * WIDTH), aligned(2), may_alias));
typedef uint16_t vhalf __attribute__((vector_size(2 * WIDTH)));
typedef uint16_t vhalf_u __attribute__((vector_size(2 * WIDTH), aligned(2), may_alias));

INLINE vfloat load(const float *p) { return *(const vfloat_u *)p; }
INLINE void store(float *p, vfloat v) { *(vfloat_u *)p = v; }
INLINE vuint load_words(const void *p) { return *(const vuint_u *)p; }
INLINE vfloat splat(float x) { return (vfloat){0} + x; }
INLINE vuint splat_words(uint32_t x) { return (vuint){0} + x; }
INLINE vfloat as_float(vuint v) { return (vfloat)v; }
INLINE vuint as_words(vfloat v) { return (vuint)v; }
INLINE vfloat to_float(vuint v) { return __builtin_convertvector((vint)v, vfloat); }
INLINE vfloat maximum(vfloat a, vfloat b) {
  const vint first = a > b;
  return (vfloat)(((vint)a & first) | ((vint)b & ~first));
}

INLINE vfloat minimum(vfloat a, vfloat b) {
  const vint first = a < b;
  return (vfloat)(((vint)a & first) | ((vint)b & ~first));
}

/* from[index[i]] in each place i; indices are below WIDTH. */
INLINE vfloat spread(vfloat from, vint index) {
#if WIDTH == 16
  return (vfloat)_mm512_permutexvar_ps((__m512i)index, (__m512)from);
#elif WIDTH == 8
  return (vfloat)_mm256_permutevar8x32_ps((__m256)from, (__m256i)index);
#else
  vfloat to;
  UNROLL for (int i = 0; i < WIDTH; ++i) to[i] = from[index[i]];
  return to;
#endif
}

#if WIDTH == 16
/* Rows become columns, of 16 by 16 floats. */
INLINE void turn(vfloat rows[16]) {
  __m512i r[16], t[16];
  UNROLL for (int i = 0; i < 16; ++i) r[i] = (__m512i)rows[i];
  UNROLL for (int i = 0; i < 8; ++i) {
    t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
  }
  UNROLL for (int i = 0; i < 4; ++i) {
    r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
    r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
  }
  UNROLL for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
  }
  UNROLL for (int i = 0; i < 8; ++i) {
    rows[i] = (vfloat)_mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    rows[i + 8] = (vfloat)_mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
  }
}
#endif

/* to[columns][ldto] = from[rows][ldfrom] turned; rows at and beyond `count` are zeros. rows is a multiple of 16. */
INLINE void turn_rows(const float *from, int64_t ldfrom, int64_t count, int64_t rows, int64_t columns, float *to, int64_t ldto) {
  int64_t done = 0;
#if WIDTH == 16
  for (; done + 16 <= columns; done += 16)
    for (int64_t row = 0; row < rows; row += 16) {
      vfloat lines[16];
      UNROLL for (int i = 0; i < 16; ++i) lines[i] = row + i < count ? load(from + (row + i) * ldfrom + done) : splat(0);
      turn(lines);
      UNROLL for (int i = 0; i < 16; ++i) store(to + (done + i) * ldto + row, lines[i]);
    }
#endif
  for (; done < columns; ++done)
    for (int64_t row = 0; row < rows; ++row) to[done * ldto + row] = row < count ? from[row * ldfrom + done] : 0;
}

INLINE float sum(vfloat v) {
#if WIDTH == 16
  return _mm512_reduce_add_ps((__m512)v);
#else
  float total = 0;
  UNROLL for (int i = 0; i < WIDTH; ++i) total += v[i];
  return total;
#endif
}

INLINE float largest(vfloat v) {
#if WIDTH == 16
  return _mm512_reduce_max_ps((__m512)v);
#else
  float most = v[0];
  UNROLL for (int i = 1; i < WIDTH; ++i) most = v[i] > most ? v[i] : most;
  return most;
#endif
}

INLINE float from_bfloat16(uint16_t bits) {
  uint32_t wide = (uint32_t)bits << 16;
  float x;
  memcpy(&x, &wide, 4);
  return x;
}

INLINE vfloat load_bfloat16(const uint16_t *p) {
  return as_float(__builtin_convertvector(*(const vhalf_u *)p, vuint) << 16);
}

INLINE vfloat load_float16(const uint16_t *p) {
#if WIDTH == 16
  return (vfloat)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
#elif WIDTH == 8
  return (vfloat)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
#elif defined(__aarch64__)
  return (vfloat)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
#else
#error "no conversion from float16 for this processor"
#endif
}

INLINE float from_float16(uint16_t bits) {
#if defined(__x86_64__)
  return _cvtsh_ss(bits);
#else
  __fp16 half;
  memcpy(&half, &bits, 2);
  return half;
#endif
}

/* e**x with a relative error below 2e-7, of x between -87 and 88: what is beyond them is taken as they are. */
INLINE vfloat exponential(vfloat x) {
  x = minimum(maximum(x, splat(-87.0f)), splat(88.0f));
  const vfloat shifter = splat(12582912.0f); /* 1.5 * 2**23: adding it rounds to an integer */
  const vfloat scaled = x * splat(1.44269504f) + shifter;
  const vfloat whole = scaled - shifter;
  const vfloat rest = (x - whole * splat(0.693145752f)) - whole * splat(1.42860677e-6f);
  vfloat y = splat(1.0f / 5040);
  y = y * rest + splat(1.0f / 720);
  y = y * rest + splat(1.0f / 120);
  y = y * rest + splat(1.0f / 24);
  y = y * rest + splat(1.0f / 6);
  y = y * rest + splat(0.5f);
  y = y * rest + splat(1.0f);
  y = y * rest + splat(1.0f);
  return as_float(as_words(y) + (as_words(scaled) << 23));
}

/* x * sigmoid(x). */
INLINE vfloat silu(vfloat x) {
  const vint seen = x > splat(-87.0f); /* the sigmoid of smaller numbers is no float32 but 0 */
  return x * (vfloat)((vint)(splat(1) / (splat(1) + exponential(-x))) & seen);
}

#endif
