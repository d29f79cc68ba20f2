/* Products of a few rows: weights are read once, from memory into registers, and turned into floats there. */
#include "matrix.h"

static int in_words(const Matrix *a) {
  return a->type == MXFP4 || (a->type == AFFINE && (a->bits == 2 || a->bits == 4 || a->bits == 8));
}

/* Columns that one step of the inner loop takes, and so what rows of x are padded to. */
static int64_t step_of(const Matrix *a) {
  if (in_words(a)) return WIDTH * (32 / a->bits);
  return a->type == BFLOAT16 ? 2 * WIDTH : WIDTH;
}

static int64_t padded(const Matrix *a) {
  const int64_t step = step_of(a);
  return (a->columns + step - 1) / step * step;
}

static int64_t groups(const Matrix *a) { return a->type >= AFFINE ? a->columns / a->group : 0; }

/* Each row of x in the order in which registers meet its weights, and the sums of its groups: one part of `parts`. */
static void shuffle(const Matrix *a, const float *x, int64_t m, int64_t ldx, float *out, int64_t part, int64_t parts) {
  const int64_t size = padded(a), columns = a->columns, stride = in_words(a) ? 32 / a->bits : a->type == BFLOAT16 ? 2 : 1;
  const int64_t blocks = size / (WIDTH * stride), all = groups(a);
  for (int64_t row = 0; row < m; ++row, x += ldx, out += size + all + WIDTH) {
    for (int64_t block = blocks * part / parts; block < blocks * (part + 1) / parts; ++block)
      for (int64_t i = 0; i < stride; ++i)
        for (int64_t j = 0; j < WIDTH; ++j) {
          const int64_t from = block * WIDTH * stride + j * stride + i;
          out[(block * stride + i) * WIDTH + j] = from < columns ? x[from] : 0;
        }
    float *sums = out + size;
    for (int64_t group = all * part / parts; group < all * (part + 1) / parts; ++group) {
      float total = 0;
      for (int64_t i = 0; i < a->group; ++i) total += x[group * a->group + i];
      sums[group] = total;
    }
    if (part == 0) memset(sums + all, 0, sizeof(float) * WIDTH);
  }
}

size_t ordered_bytes(const Matrix *a, int64_t m, int precision) {
  if (precision != EXACT && takes_integers(a)) return integer_bytes(a, m);
  return sizeof(float) * (size_t)(m * (padded(a) + groups(a) + WIDTH));
}

void put_in_order(const Matrix *a, const float *x, int64_t m, int64_t ldx, int precision, void *out, Place place) {
  if (precision != EXACT && takes_integers(a))
    make_integers(a, x, m, ldx, out, place.index, place.count);
  else
    shuffle(a, x, m, ldx, out, place.index, place.count);
}

INLINE vfloat decode(vuint words, int bits, int mxfp4, int i) {
#if WIDTH == 16
  if (bits == 4) { /* a table of 16 floats, of which the lowest 4 bits choose one */
    const vfloat table = mxfp4 ? load(MXFP4_VALUES) : (vfloat){0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return spread(table, (vint)(words >> (uint32_t)(4 * i)));
  }
#endif
  vuint number = words >> (uint32_t)(bits * i);
  if (bits * (i + 1) < 32) number &= (1u << bits) - 1;
  if (!mxfp4) return to_float(number);
  vfloat value; /* of sign, two bits of exponent, one of mantissa */
  UNROLL for (int j = 0; j < WIDTH; ++j) value[j] = MXFP4_VALUES[number[j]];
  return value;
}

/* The product of a vector of words with the same columns of x. */
INLINE vfloat one_block(int bits, int mxfp4, vuint words, const float *x) {
  vfloat part = splat(0);
  UNROLL for (int k = 0; k < 32 / bits; ++k) part += decode(words, bits, mxfp4, k) * load(x + k * WIDTH);
  return part;
}

/* Four rows of packed weights by one row of x. */
INLINE void packed_rows(const Product *p, int64_t row, int bits, int mxfp4, const float *shuffled, float *y) {
  const Matrix *a = p->matrix;
  const int64_t all = a->columns / a->group, bytes = row_bytes(a), step = WIDTH * (32 / bits), ahead = bytes_ahead(bytes, 4);
  const int type = mxfp4 ? MXFP4 : a->scale_type;
  const Groups groups = groups_of(a);
  const uint8_t *from[4];
  int64_t place[4]; /* of the row's first scale */
  vfloat total[4];
  UNROLL for (int r = 0; r < 4; ++r) {
    from[r] = weight_row(a, p->expert, row + r);
    place[r] = (p->expert * a->rows + row + r) * all;
    total[r] = splat(0);
  }
  int64_t block = 0;
  for (int64_t group = 0; group < all; group += WIDTH) {
    vfloat scales[4];
    UNROLL for (int r = 0; r < 4; ++r) scales[r] = scales_at(a->scales, type, place[r] + group, all - group < WIDTH ? all - group : WIDTH);
    const int64_t first = block, end = block + groups.blocks;
    for (; block < end && (block + 1) * BYTES <= bytes; ++block) {
      const vint lanes = group_lanes(&groups, block - first);
      UNROLL for (int r = 0; r < 4; ++r) {
        const uint8_t *at = from[r] + block * BYTES;
        __builtin_prefetch(at + ahead, 0, 2);
        total[r] += one_block(bits, mxfp4, load_words(at), shuffled + block * step) * spread(scales[r], lanes);
      }
    }
    if (block < end && block * BYTES < bytes) { /* the rest of a row, and zeros */
      UNROLL for (int r = 0; r < 4; ++r) {
        vuint words = {0};
        memcpy(&words, from[r] + block * BYTES, (size_t)(bytes - block * BYTES));
        total[r] += one_block(bits, mxfp4, words, shuffled + block * step) * spread(scales[r], group_lanes(&groups, block - first));
      }
      ++block;
    }
  }
  UNROLL for (int r = 0; r < 4; ++r) {
    if (!mxfp4) total[r] = add_biases(total[r], a->biases, type, place[r], all, shuffled + padded(a));
    y[r * FEW] = sum(total[r]);
  }
}

INLINE void float_rows(const Product *p, int64_t row, int count, int m, int type, const float *shuffled, float *y) {
  const Matrix *a = p->matrix;
  const int64_t columns = a->columns, line = padded(a) + WIDTH, width = type == BFLOAT16 ? 2 * WIDTH : WIDTH;
  const uint8_t *from[4];
  vfloat total[4][FEW];
  for (int r = 0; r < count; ++r) {
    from[r] = weight_row(a, p->expert, row + r);
    UNROLL for (int i = 0; i < m; ++i) total[r][i] = splat(0);
  }
  const int64_t ahead = bytes_ahead(row_bytes(a), count);
  int64_t k = 0;
  for (; k + width <= columns; k += width)
    UNROLL for (int r = 0; r < count; ++r) {
      __builtin_prefetch(from[r] + k * (type == FLOAT32 ? 4 : 2) + ahead);
      if (type == BFLOAT16) {
        const vuint pairs = load_words(from[r] + 2 * k);
        const vfloat even = as_float(pairs << 16), odd = as_float(pairs & 0xffff0000u);
        UNROLL for (int i = 0; i < m; ++i) total[r][i] += even * load(shuffled + i * line + k) + odd * load(shuffled + i * line + k + WIDTH);
      } else {
        const vfloat number = type == FLOAT32 ? load((const float *)from[r] + k) : load_float16((const uint16_t *)from[r] + k);
        UNROLL for (int i = 0; i < m; ++i) total[r][i] += number * load(shuffled + i * line + k);
      }
    }
  for (int r = 0; r < count; ++r)
    for (int i = 0; i < m; ++i) {
      float rest = 0;
      for (int64_t j = k; j < columns; ++j) {
        const int64_t at = type == BFLOAT16 ? k + (j - k) / 2 + (j & 1 ? WIDTH : 0) : j;
        const float number = type == FLOAT32    ? ((const float *)from[r])[j]
                             : type == BFLOAT16 ? from_bfloat16(((const uint16_t *)from[r])[j])
                                                : from_float16(((const uint16_t *)from[r])[j]);
        rest += number * shuffled[i * line + at];
      }
      y[r * FEW + i] = sum(total[r][i]) + rest;
    }
}

/* Types without a loop of their own: a row is made floats of first. */
static void other_row(const Product *p, int64_t row, float *y) {
  const Matrix *a = p->matrix;
  float *numbers = pool_scratch(3, sizeof(float) * (size_t)a->columns);
  unpack(a, p->expert, row, 0, a->columns, numbers);
  for (int64_t i = 0; i < p->m; ++i) {
    const float *x = p->x + i * p->ldx;
    vfloat total = splat(0);
    int64_t k = 0;
    for (; k + WIDTH <= a->columns; k += WIDTH) total += load(numbers + k) * load(x + k);
    float rest = 0;
    for (; k < a->columns; ++k) rest += numbers[k] * x[k];
    y[i] = sum(total) + rest;
  }
}

/* Packed weights have a loop for one row of x alone; for two to four they become floats first, once for all. */
static int has_loop(const Product *p) {
  const Matrix *a = p->matrix;
  return a->rows >= TOGETHER(p->m) && (a->type < AFFINE || (p->m == 1 && in_words(a)));
}

static void some_rows(const Product *p, int64_t row, const float *shuffled, float *y) {
  const Matrix *a = p->matrix;
#define CASE(M)                                                                              \
  if (p->m == M) {                                                                           \
    if (a->type == FLOAT32) float_rows(p, row, TOGETHER(M), M, FLOAT32, shuffled, y);        \
    else if (a->type == BFLOAT16) float_rows(p, row, TOGETHER(M), M, BFLOAT16, shuffled, y); \
    else float_rows(p, row, TOGETHER(M), M, FLOAT16, shuffled, y);                           \
  }
  if (a->type == MXFP4) packed_rows(p, row, 4, 1, shuffled, y);
  else if (a->type == AFFINE && a->bits == 4) packed_rows(p, row, 4, 0, shuffled, y);
  else if (a->type == AFFINE && a->bits == 8) packed_rows(p, row, 8, 0, shuffled, y);
  else if (a->type == AFFINE) packed_rows(p, row, 2, 0, shuffled, y);
  else CASE(1)
  else CASE(2)
  else CASE(3)
  else CASE(4)
#undef CASE
}

void few_rows(const Product *p, int64_t first, int64_t last, const void *ordered, int add, int precision) {
  const Matrix *a = p->matrix;
  const int integers = precision != EXACT && takes_integers(a), together = TOGETHER(p->m);
  const int loops = integers ? a->rows >= together : has_loop(p);
  for (int64_t row = first; row < last;) {
    /* The last rows are computed with some before them, so that there is one loop for any number. */
    const int64_t begin = !loops ? row : row + together <= a->rows ? row : a->rows - together;
    const int64_t end = !loops ? row + 1 : begin + together < last ? begin + together : last;
    float y[4 * FEW];
    if (!loops)
      other_row(p, row, y);
    else if (integers)
      integer_rows(p, begin, ordered, y);
    else
      some_rows(p, begin, ordered, y);
    for (; row < end; ++row)
      for (int64_t i = 0; i < p->m; ++i) {
        float *to = p->y + i * p->ldy + row;
        *to = y[(row - begin) * FEW + i] + (a->bias != NULL ? a->bias[row] : 0) + (add ? *to : 0);
      }
  }
}
