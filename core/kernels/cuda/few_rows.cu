// Body of the kernel few_rows: the product of a block's rows. few_rows.cuh comes before it.
extern __shared__ __align__(128) unsigned char smem[];
using namespace corelm_few_rows;
int rows = 1;
for (int axis = 0; axis + 1 < x_ndim; ++axis) rows *= x_shape[axis];
const int features = x_shape[x_ndim - 1];
out += static_cast<size_t>(blockIdx.y) * rows * gridDim.x * BLOCK_ROWS;
if ((reinterpret_cast<size_t>(weight) & 15) != 0) {
  slowly(x, weight, scales, biases, features, out, rows);
} else {
  const Matrix matrix{reinterpret_cast<const unsigned char*>(weight), reinterpret_cast<const unsigned char*>(scales),
                      reinterpret_cast<const unsigned char*>(biases), features};
  product(x, matrix, out, rows, smem);
}
