// Body of the kernel take_rows: a block of columns of one row.
const int width = matrix_shape[1], column = blockIdx.y * blockDim.x + threadIdx.x;
long long row = numbers[blockIdx.x];
if (row < 0) row += matrix_shape[0];
if (column < width) out[static_cast<long long>(blockIdx.x) * width + column] = matrix[row * width + column];
