// Body of the kernel merge_parts: two features a thread, in one pass, so that several parts are on their way
// at a time: what one row waits for.
const int parts = found_shape[3], width = found_shape[4] / 2;
const float2* from = reinterpret_cast<const float2*>(found) + static_cast<long long>(blockIdx.x) * parts * width;
float best = -1e30f, total = 0.f, x = 0.f, y = 0.f;
#pragma unroll 8
for (int p = 0; p < parts; ++p) {
  const float2 weight = from[p * width + width - 1], value = from[p * width + threadIdx.x];
  const float top = fmaxf(best, weight.x), faded = exp2f(best - top), added = exp2f(weight.x - top);
  total = total * faded + added * weight.y;
  x = x * faded + added * value.x;
  y = y * faded + added * value.y;
  best = top;
}
reinterpret_cast<__nv_bfloat162*>(out)[static_cast<long long>(blockIdx.x) * (width - 1) + threadIdx.x] =
    __floats2bfloat162_rn(x / total, y / total);
