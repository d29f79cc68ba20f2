/* Products of a few rows with 4-bit and 8-bit weights in integers: each group of x becomes 16-bit numbers with a scale
   of its own, whose high and low bytes are multiplied by the weights' bytes apart. The error of a number is at most
   the largest of its group divided by 65,000; a bfloat16 would be off by up to its own size divided by 512. */
#include "matrix.h"

#define LARGEST 32639  /* 127 * 256 + 127: its high byte fits as well */
#define MOST_GROUP 128 /* numbers of a group */

typedef int8_t vbytes __attribute__((vector_size(4 * WIDTH)));

/* sums[i] += the four products of bytes 4 i to 4 i + 3; the left bytes are unsigned. */
INLINE vint dot(vint sums, vuint left, vbytes right) {
#if defined(__AVX512VNNI__)
  return (vint)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)left, (__m512i)right);
#elif WIDTH == 16
  const __m512i pairs = _mm512_maddubs_epi16((__m512i)left, (__m512i)right);
  return sums + (vint)_mm512_madd_epi16(pairs, _mm512_set1_epi16(1));
#elif WIDTH == 8
  const __m256i pairs = _mm256_maddubs_epi16((__m256i)left, (__m256i)right);
  return sums + (vint)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
#elif defined(__ARM_FEATURE_DOTPROD)
  return (vint)vdotq_s32((int32x4_t)sums, (int8x16_t)left, (int8x16_t)right);
#else
  (void)left, (void)right;
  return sums;
#endif
}

/* Pairs of 8-bit products would not fit into 16 bits, nor unsigned bytes into signed ones. */
int takes_integers(const Matrix *a) {
  if (a->type != AFFINE) return 0;
#if defined(__AVX512VNNI__)
  return (a->bits == 4 || a->bits == 8) && a->group <= MOST_GROUP;
#elif defined(__AVX2__) || defined(__ARM_FEATURE_DOTPROD)
  return a->bits == 4 && a->group <= MOST_GROUP;
#else
  return 0;
#endif
}

/* x in this order: for each vector of weights its planes of bytes [high, low] of each place in a byte's bits; then the
   scales of the groups, and their sums. */
static int64_t planes(const Matrix *a) { return 16 / a->bits; }
static int64_t blocks(const Matrix *a) { return (row_bytes(a) + BYTES - 1) / BYTES; }
static int64_t block_bytes(const Matrix *a) { return planes(a) * BYTES; }
static int64_t padded_groups(const Matrix *a) { return a->columns / a->group + WIDTH; }
static int64_t line_bytes(const Matrix *a) {
  return (blocks(a) * block_bytes(a) + 2 * (int64_t)sizeof(float) * padded_groups(a) + 63) / 64 * 64;
}

size_t integer_bytes(const Matrix *a, int64_t m) { return (size_t)(m * line_bytes(a)); }

/* Bytes of a group's numbers, in order, to the planes of a block from its byte `at` on. */
INLINE void put_bytes(const int8_t *highs, const int8_t *lows, int64_t in_byte, int64_t bytes, int8_t *to) {
  if (in_byte == 1) {
    memcpy(to, highs, (size_t)bytes);
    memcpy(to + BYTES, lows, (size_t)bytes);
    return;
  }
  for (int64_t i = 0; i < bytes; ++i) {
    to[i] = highs[2 * i];
    to[BYTES + i] = lows[2 * i];
    to[2 * BYTES + i] = highs[2 * i + 1];
    to[3 * BYTES + i] = lows[2 * i + 1];
  }
}

/* Makes one group of x integers in the line of its row. */
static void group_integers(const Matrix *a, const float *x, int64_t group, uint8_t *line) {
  vfloat sizes = splat(0), sums = splat(0);
  for (int64_t i = 0; i < a->group; i += WIDTH) {
    const vfloat numbers = load(x + i);
    sizes = maximum(as_float(as_words(numbers) & 0x7fffffffu), sizes);
    sums += numbers;
  }
  const float most = largest(sizes), total = sum(sums);
  /* A group with NaN or infinity gives NaN: its scale is one. */
  const int finite = total - total == 0 && most - most == 0, some = finite && most > 1e-30f;
  const float scale = !finite ? total - total : some ? most / LARGEST : 0, inverse = some ? LARGEST / most : 0;
  int8_t highs[MOST_GROUP], lows[MOST_GROUP];
  for (int64_t i = 0; i < a->group; ++i) {
    const float scaled = some ? x[i] * inverse : 0;
    const int32_t number = (int32_t)(scaled + (scaled < 0 ? -0.5f : 0.5f)), high = (number + 128) >> 8;
    highs[i] = (int8_t)high;
    lows[i] = (int8_t)(number - high * 256);
  }
  const int64_t in_byte = 8 / a->bits, bytes = a->group / in_byte, piece = bytes < BYTES ? bytes : BYTES;
  for (int64_t done = 0; done < bytes; done += piece) { /* a group is a part of a block, or several blocks */
    const int64_t at = group * bytes + done, inside = at % BYTES;
    uint8_t *block = line + at / BYTES * block_bytes(a);
    put_bytes(highs + done * in_byte, lows + done * in_byte, in_byte, piece, (int8_t *)block + inside);
  }
  float *scales = (float *)(line + blocks(a) * block_bytes(a));
  scales[group] = scale;
  scales[padded_groups(a) + group] = total;
}

void make_integers(const Matrix *a, const float *x, int64_t m, int64_t ldx, void *out, int64_t part, int64_t parts) {
  const int64_t groups = a->columns / a->group, size = block_bytes(a), all = row_bytes(a);
  for (int64_t row = 0; row < m; ++row, x += ldx) {
    uint8_t *line = (uint8_t *)out + row * line_bytes(a);
    float *scales = (float *)(line + blocks(a) * size);
    for (int64_t group = groups * part / parts; group < groups * (part + 1) / parts; ++group)
      group_integers(a, x + group * a->group, group, line);
    if (part + 1 < parts) continue;
    /* What is beyond the columns is zeros. */
    for (int64_t at = all; at % BYTES; at += 4) {
      uint8_t *block = line + at / BYTES * size;
      for (int64_t plane = 0; plane < planes(a); ++plane) memset(block + plane * BYTES + at % BYTES, 0, 4);
    }
    memset(scales + groups, 0, sizeof(float) * WIDTH);
    memset(scales + padded_groups(a) + groups, 0, sizeof(float) * WIDTH);
  }
}

/* Adds the products of a vector of words with the same columns of `m` rows of x. factors: of the words' groups. */
INLINE void one_block(int m, int bits, vuint words, const vfloat *factors, vint lanes, const uint8_t *x, int64_t line, vfloat *total) {
  UNROLL for (int i = 0; i < m; ++i) {
    const uint8_t *mine = x + i * line;
    vint high = {0}, low = {0};
    UNROLL for (int k = 0; k < 8 / bits; ++k) {
      const vuint part = bits == 8 ? words : (k ? words >> 4 : words) & 0x0f0f0f0fu;
      high = dot(high, part, (vbytes)load_words(mine + 2 * k * BYTES));
      low = dot(low, part, (vbytes)load_words(mine + (2 * k + 1) * BYTES));
    }
    total[i] += __builtin_convertvector((high << 8) + low, vfloat) * spread(factors[i], lanes);
  }
}

INLINE void rows_of(const Product *p, int64_t row, int count, int m, int bits, const uint8_t *x, float *y) {
  const Matrix *a = p->matrix;
  const int64_t all = a->columns / a->group, bytes = row_bytes(a), line = line_bytes(a), ahead = bytes_ahead(bytes, count);
  const int64_t step = (16 / bits) * BYTES;
  const Groups groups = groups_of(a);
  const float *scales = (const float *)(x + blocks(a) * step), *sums = scales + padded_groups(a);
  const uint8_t *from[4];
  int64_t place[4]; /* of the row's first scale */
  vfloat total[4][FEW];
  UNROLL for (int r = 0; r < count; ++r) {
    from[r] = weight_row(a, p->expert, row + r);
    place[r] = (p->expert * a->rows + row + r) * all;
    UNROLL for (int i = 0; i < m; ++i) total[r][i] = splat(0);
  }
  int64_t block = 0;
  for (int64_t group = 0; group < all; group += WIDTH) {
    vfloat factors[4][FEW]; /* a group of weights by the same group of x */
    UNROLL for (int r = 0; r < count; ++r) {
      const vfloat mine = scales_at(a->scales, a->scale_type, place[r] + group, all - group < WIDTH ? all - group : WIDTH);
      UNROLL for (int i = 0; i < m; ++i) factors[r][i] = mine * load((const float *)((const uint8_t *)(scales + group) + i * line));
    }
    const int64_t first = block, end = block + groups.blocks;
    for (; block < end && (block + 1) * BYTES <= bytes; ++block) {
      const vint lanes = group_lanes(&groups, block - first);
      UNROLL for (int r = 0; r < count; ++r) {
        const uint8_t *at = from[r] + block * BYTES;
        __builtin_prefetch(at + ahead, 0, 2);
        one_block(m, bits, load_words(at), factors[r], lanes, x + block * step, line, total[r]);
      }
    }
    if (block < end && block * BYTES < bytes) { /* the rest of a row, and zeros */
      UNROLL for (int r = 0; r < count; ++r) {
        vuint words = {0};
        memcpy(&words, from[r] + block * BYTES, (size_t)(bytes - block * BYTES));
        one_block(m, bits, words, factors[r], group_lanes(&groups, block - first), x + block * step, line, total[r]);
      }
      ++block;
    }
  }
  UNROLL for (int r = 0; r < count; ++r)
    UNROLL for (int i = 0; i < m; ++i) {
      const float *mine = (const float *)((const uint8_t *)sums + i * line);
      y[r * FEW + i] = sum(add_biases(total[r][i], a->biases, a->scale_type, place[r], all, mine));
    }
}

void integer_rows(const Product *p, int64_t row, const void *integers, float *y) {
  const uint8_t *x = integers;
#define CASE(M)                                    \
  if (p->m == M) {                                 \
    if (p->matrix->bits == 4)                      \
      rows_of(p, row, TOGETHER(M), M, 4, x, y);    \
    else                                           \
      rows_of(p, row, TOGETHER(M), M, 8, x, y);    \
  }
  CASE(1)
  CASE(2)
  CASE(3)
  CASE(4)
#undef CASE
}
