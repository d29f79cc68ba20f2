/* Numbers of a row of weights, of every type, as floats. */
#include "matrix.h"

const float INTEGERS[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
const float MXFP4_VALUES[16] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6, -0.0f, -0.5f, -1, -1.5f, -2, -3, -4, -6};

static void unpack_8(const uint8_t *bytes, int64_t count, float *out) {
  for (int64_t i = 0; i < count; ++i) out[i] = (float)bytes[i];
}

static void unpack_2(const uint8_t *bytes, int64_t count, float *out) {
  for (int64_t i = 0; i < count; ++i) out[i] = (float)(bytes[i / 4] >> (2 * (i % 4)) & 3);
}

/* Integers that cross the bounds of bytes: 3, 5 or 6 bits, the first lowest. */
static void unpack_any(const uint8_t *bytes, int64_t first, int64_t count, int bits, float *out) {
  for (int64_t i = 0; i < count; ++i) {
    const int64_t at = (first + i) * bits;
    const uint32_t two = bytes[at >> 3] | ((at & 7) + bits > 8 ? (uint32_t)bytes[(at >> 3) + 1] << 8 : 0);
    out[i] = (float)(int32_t)(two >> (at & 7) & ((1u << bits) - 1));
  }
}

/* What each of 16 values of 4 bits stands for, looked up. */
static void look_up(const uint32_t *words, int64_t count, const float *values, float *out) {
#if WIDTH == 16
  const __m512 table = _mm512_loadu_ps(values);
  const __m512i shifts = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28);
  const __m512i places = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
  for (int64_t i = 0; i < count / 16; ++i) {
    const __m512i pair = _mm512_castsi128_si512(_mm_loadl_epi64((const __m128i *)(words + 2 * i)));
    const __m512i four = _mm512_srlv_epi32(_mm512_permutexvar_epi32(places, pair), shifts);
    _mm512_storeu_ps(out + 16 * i, _mm512_permutexvar_ps(four, table)); /* which reads the lowest 4 bits */
  }
#else
  for (int64_t i = 0; i < count; ++i) out[i] = values[words[i / 8] >> (4 * (i % 8)) & 15];
#endif
}

static void scale(const Matrix *a, int64_t at, int64_t first, int64_t count, float *out) {
  for (int64_t i = 0; i < count;) {
    const int64_t group = (first + i) / a->group, end = (group + 1) * a->group - first;
    float factor, offset = 0;
    read_scales(a->scales, a->type == MXFP4 ? MXFP4 : a->scale_type, at + group, 1, &factor);
    if (a->biases != NULL) read_scales(a->biases, a->scale_type, at + group, 1, &offset);
    const int64_t stop = end < count ? end : count;
    for (; i < stop; ++i) out[i] = out[i] * factor + offset;
  }
}

void unpack(const Matrix *a, int64_t expert, int64_t row, int64_t first, int64_t count, float *out) {
  const uint8_t *bytes = weight_row(a, expert, row);
  if (a->type == FLOAT32) {
    memcpy(out, (const float *)bytes + first, 4 * (size_t)count);
    return;
  }
  if (a->type == BFLOAT16 || a->type == FLOAT16) {
    const uint16_t *p = (const uint16_t *)bytes + first;
    int64_t i = 0;
    for (; i + WIDTH <= count; i += WIDTH) store(out + i, a->type == BFLOAT16 ? load_bfloat16(p + i) : load_float16(p + i));
    for (; i < count; ++i) out[i] = a->type == BFLOAT16 ? from_bfloat16(p[i]) : from_float16(p[i]);
    return;
  }
  const uint32_t *words = (const uint32_t *)(bytes + first * a->bits / 8);
  if (a->bits == 4) {
    look_up(words, count, a->type == MXFP4 ? MXFP4_VALUES : INTEGERS, out);
  } else if (a->bits == 8) {
    unpack_8(bytes + first, count, out);
  } else if (a->bits == 2) {
    unpack_2(bytes + first / 4, count, out);
  } else {
    unpack_any(bytes, first, count, a->bits, out);
  }
  scale(a, (expert * a->rows + row) * (a->columns / a->group), first, count, out);
}
