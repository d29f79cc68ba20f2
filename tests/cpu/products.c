/* Products of the CPU library with weights of every type, against sums in double of the numbers that `unpack` gives.
   Prints how many were tried, and the largest error of each precision, relative to the largest number of a product. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "matrix.h"

static const int COLUMNS[] = {64, 192, 416}, ROWS[] = {37, 6, 70}, FEW_AND_MANY[] = {1, 2, 3, 4, 5, 9, 33};
static int tried, asked, every = 1; /* of the products that are asked for, one in `every` is tried */
static double worst[3];

static float number(void) { return (float)rand() / (float)RAND_MAX * 2 - 1; }

static void write_float(void *array, int type, int at, float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  if (type == FLOAT32) {
    ((float *)array)[at] = value;
  } else if (type == BFLOAT16) {
    ((uint16_t *)array)[at] = (uint16_t)(bits >> 16);
  } else {
    const _Float16 half = (_Float16)value;
    memcpy((uint16_t *)array + at, &half, 2);
  }
}

typedef struct {
  Product product;
  int precision;
} Call;

static void task(Place place, void *argument) {
  const Call *call = argument;
  multiply(place, &call->product, 1, 0, call->precision);
}

static void compare(const Matrix *a, int m, int precision) {
  if (asked++ % every) return;
  float *x = malloc(sizeof(float) * (size_t)(m * a->columns)), *row = malloc(sizeof(float) * (size_t)a->columns);
  float *y = calloc((size_t)(m * a->rows), sizeof(float));
  for (int i = 0; i < m * a->columns; ++i) x[i] = number();
  Call call = {{a, 0, x, y, m, a->columns, a->rows}, precision};
  pool_run(task, &call, 100000000);
  double largest = 0, error = 0;
  for (int r = 0; r < a->rows; ++r) {
    unpack(a, 0, r, 0, a->columns, row);
    for (int i = 0; i < m; ++i) {
      double expected = 0;
      for (int k = 0; k < a->columns; ++k) expected += (double)row[k] * x[i * a->columns + k];
      largest = fmax(largest, fabs(expected));
      const double off = fabs(expected - y[i * a->rows + r]);
      if (!(off <= error)) error = off; /* NaN too */
    }
  }
  if (!(error / largest <= worst[precision])) worst[precision] = error / largest;
  ++tried;
  free(x);
  free(row);
  free(y);
}

static void try_matrix(int type, int bits, int scale_type, int columns, int rows) {
  const int group = type == AFFINE && columns == 192 ? 64 : 32, groups = rows * columns / group;
  uint8_t *weight = malloc((size_t)(4 * rows * columns)), *scales = malloc((size_t)(4 * groups)), *biases = malloc((size_t)(4 * groups));
  for (int i = 0; i < rows * columns; ++i) {
    if (type < AFFINE)
      write_float(weight, type, i, number());
    else
      ((uint32_t *)weight)[i] = (uint32_t)rand() ^ (uint32_t)rand() << 16;
  }
  for (int i = 0; i < groups; ++i) {
    if (type == MXFP4) {
      scales[i] = (uint8_t)(120 + rand() % 8);
    } else {
      write_float(scales, scale_type, i, number() / 10);
      write_float(biases, scale_type, i, number() / 10);
    }
  }
  const Matrix a = {weight, scales, type == AFFINE ? biases : NULL, NULL, rows, columns, type, bits, group, scale_type};
  for (size_t i = 0; i < sizeof FEW_AND_MANY / sizeof *FEW_AND_MANY; ++i)
    for (int precision = EXACT; precision <= ROUNDED; ++precision) compare(&a, FEW_AND_MANY[i], precision);
  free(weight);
  free(scales);
  free(biases);
}

int main(int count, char **arguments) {
  if (count > 1) every = atoi(arguments[1]);
  static const int BITS[] = {2, 3, 4, 5, 6, 8};
  for (int threads = 1; threads <= 3; threads += 2) {
    pool_resize(threads);
    for (int size = 0; size < 3; ++size) {
      for (int type = FLOAT32; type <= FLOAT16; ++type) try_matrix(type, 0, FLOAT32, COLUMNS[size], ROWS[size]);
      try_matrix(MXFP4, 4, FLOAT32, COLUMNS[size], ROWS[size]);
      for (size_t i = 0; i < sizeof BITS / sizeof *BITS; ++i)
        for (int scale_type = FLOAT32; scale_type <= FLOAT16; ++scale_type)
          try_matrix(AFFINE, BITS[i], scale_type, COLUMNS[size], ROWS[size]);
    }
  }
  printf("%d %g %g %g\n", tried, worst[EXACT], worst[CLOSE], worst[ROUNDED]);
  return 0;
}
