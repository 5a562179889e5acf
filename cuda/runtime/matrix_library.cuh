// Products of large matrices by NVIDIA's cuBLASLt, where it is installed: it is
// opened when the first program needs it, and nothing is linked.
#pragma once

#include <cuda_runtime.h>
#include <stddef.h>
#include <stdint.h>

#include <memory>

#include "../steadykv.h"

// output = input · weightᵀ, in halves with f32 sums.
struct LibraryProduct {
  // (rows, weight.rows)
  float *output;
  // (rows, weight.pitch)
  const skv_half *input;
  skv_matrix weight;
  uint32_t rows;
};

class MatrixLibrary {
 public:
  // Device memory that a product may use beside its matrices.
  static constexpr size_t kWorkspaceBytes = size_t{1} << 25;

  // Opens the library: the file that STEADYKV_CUBLASLT names, or else the one
  // that the system finds. Null where there is none.
  static std::unique_ptr<MatrixLibrary> open();
  ~MatrixLibrary();
  MatrixLibrary(const MatrixLibrary &) = delete;
  MatrixLibrary &operator=(const MatrixLibrary &) = delete;

  // Enqueues a product. False where the library has no way to make it, and
  // nothing was enqueued. `workspace` has kWorkspaceBytes.
  bool multiply(const LibraryProduct &product, void *workspace,
                cudaStream_t stream);

 private:
  struct Functions;

  MatrixLibrary();

  std::unique_ptr<Functions> functions_;
  void *handle_ = nullptr;
};
