// Stands in for cuBLASLt: the functions that cuda/runtime/matrix_library.cu
// looks for, by their documented meaning, for the one product that it makes.
// Anything else is refused.
#include "../lib/half.cuh"
#include "../runtime/launch.cuh"
#include "../runtime/matrix_library.cuh"

namespace {

constexpr int kSuccess = 0;
constexpr int kInvalid = 7;
constexpr int kNotSupported = 15;

struct Description {
  int compute;
  int scale;
  int32_t transpose[2];
};

struct Layout {
  int type;
  uint64_t rows;
  uint64_t columns;
  int64_t pitch;
};

struct Preference {
  uint64_t workspace_bytes;
};

struct Proposal {
  uint64_t algorithm[8];
  size_t workspace_bytes;
  int status;
  float waves;
  int reserved[4];
};

constexpr uint32_t kThreads = 128;

// One thread per element of the result; matrices go down their columns.
__global__ void multiply_kernel(float *d, const skv_half *a, const skv_half *b,
                                Layout left, Layout right, Layout result) {
  const uint64_t row = blockIdx.x * kThreads + threadIdx.x;
  const uint64_t column = blockIdx.y;
  if (row >= result.rows) return;
  float sum = 0.0f;
  for (uint64_t k = 0; k < left.rows; k++) {
    sum += to_float(a[row * left.pitch + k]) *
           to_float(b[column * right.pitch + k]);
  }
  d[column * result.pitch + row] = sum;
}

// Whether dᵀ = b ᵀ a for halves of f32 sums, with a going in transposed.
bool is_product(const Description &it, const Layout &a, const Layout &b,
                const Layout &d) {
  return it.compute == 68 && it.scale == 0 && it.transpose[0] == 1 &&
         it.transpose[1] == 0 && a.type == 2 && b.type == 2 && d.type == 0 &&
         a.rows == b.rows && a.columns == d.rows && b.columns == d.columns &&
         a.rows % 8 == 0 && a.pitch % 8 == 0 && b.pitch % 8 == 0;
}

template <class T>
int give(void **to, T value) {
  *to = new T(value);
  return kSuccess;
}

template <class T>
int destroy(void *it) {
  delete static_cast<T *>(it);
  return kSuccess;
}

}  // namespace

extern "C" {

SKV_API int cublasLtCreate(void **handle) { return give(handle, int{42}); }
SKV_API int cublasLtDestroy(void *handle) { return destroy<int>(handle); }

SKV_API int cublasLtMatmulDescCreate(void **it, int compute, int scale) {
  return give(it, Description{compute, scale, {0, 0}});
}
SKV_API int cublasLtMatmulDescDestroy(void *it) {
  return destroy<Description>(it);
}
SKV_API int cublasLtMatmulDescSetAttribute(void *it, int attribute,
                                           const void *value, size_t bytes) {
  if ((attribute != 3 && attribute != 4) || bytes != 4) return kInvalid;
  memcpy(static_cast<Description *>(it)->transpose + attribute - 3, value, 4);
  return kSuccess;
}

SKV_API int cublasLtMatrixLayoutCreate(void **it, int type, uint64_t rows,
                                       uint64_t columns, int64_t pitch) {
  return give(it, Layout{type, rows, columns, pitch});
}
SKV_API int cublasLtMatrixLayoutDestroy(void *it) {
  return destroy<Layout>(it);
}

SKV_API int cublasLtMatmulPreferenceCreate(void **it) {
  return give(it, Preference{0});
}
SKV_API int cublasLtMatmulPreferenceDestroy(void *it) {
  return destroy<Preference>(it);
}
SKV_API int cublasLtMatmulPreferenceSetAttribute(void *it, int attribute,
                                                 const void *value,
                                                 size_t bytes) {
  if (attribute != 1 || bytes != 8) return kInvalid;
  memcpy(&static_cast<Preference *>(it)->workspace_bytes, value, 8);
  return kSuccess;
}

// Has no way to make a result with one column more than a multiple of 64.
SKV_API int cublasLtMatmulAlgoGetHeuristic(void *, void *description, void *a,
                                           void *b, void *, void *d, void *,
                                           int wanted, void *proposals,
                                           int *found) {
  const Layout &result = *static_cast<Layout *>(d);
  *found = 0;
  if (wanted < 1 || result.columns % 64 == 1 ||
      !is_product(*static_cast<Description *>(description),
                  *static_cast<Layout *>(a), *static_cast<Layout *>(b),
                  result)) {
    return kNotSupported;
  }
  *static_cast<Proposal *>(proposals) = {{42}, 0, kSuccess, 1.0f, {}};
  *found = 1;
  return kSuccess;
}

SKV_API int cublasLtMatmul(void *handle, void *description, const float *alpha,
                           const skv_half *a, void *a_layout, const skv_half *b,
                           void *b_layout, const float *beta, const float *,
                           void *, float *d, void *d_layout,
                           const uint64_t *algorithm, void *workspace,
                           size_t workspace_bytes, cudaStream_t stream) {
  const Layout &left = *static_cast<Layout *>(a_layout);
  const Layout &right = *static_cast<Layout *>(b_layout);
  const Layout &result = *static_cast<Layout *>(d_layout);
  if (*static_cast<int *>(handle) != 42 || algorithm[0] != 42 ||
      *alpha != 1.0f || *beta != 0.0f || workspace == nullptr ||
      workspace_bytes == 0 ||
      !is_product(*static_cast<Description *>(description), left, right,
                  result)) {
    return kInvalid;
  }
  const dim3 grid(
      static_cast<uint32_t>((result.rows + kThreads - 1) / kThreads),
      static_cast<uint32_t>(result.columns));
  const cudaError_t error = start_kernel(
      stream, multiply_kernel, grid, kThreads, d, a, b, left, right, result);
  return error == cudaSuccess ? kSuccess : kInvalid;
}

}  // extern "C"
