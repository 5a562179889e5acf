// cuBLASLt by its documented binary interface: the library of any version from
// 11 to 13 has these functions and numbers.
#include <dlfcn.h>
#include <stdlib.h>

#include "matrix_library.cuh"

namespace {

using Status = int;
using Handle = void *;
using Description = void *;
using Layout = void *;
using Preference = void *;

constexpr Status kSuccess = 0;

// cudaDataType_t and cublasComputeType_t.
constexpr int kFloat = 0;
constexpr int kHalf = 2;
constexpr int kComputeFloat = 68;

// Attributes of a product's description: what is done to its left matrix.
constexpr int kTransposeLeft = 3;
constexpr int32_t kTransposed = 1;

// Attributes of a preference.
constexpr int kMaxWorkspaceBytes = 1;

// How a product is made, as the heuristics propose it.
struct Proposal {
  uint64_t algorithm[8];
  size_t workspace_bytes;
  Status status;
  float waves;
  int reserved[4];
};
static_assert(sizeof(Proposal) == 96, "as the library writes it");

}  // namespace

struct MatrixLibrary::Functions {
  Status (*create)(Handle *);
  Status (*destroy)(Handle);
  Status (*create_description)(Description *, int compute, int scale);
  Status (*destroy_description)(Description);
  Status (*set_description)(Description, int attribute, const void *value,
                            size_t bytes);
  Status (*create_layout)(Layout *, int type, uint64_t rows, uint64_t columns,
                          int64_t pitch);
  Status (*destroy_layout)(Layout);
  Status (*create_preference)(Preference *);
  Status (*destroy_preference)(Preference);
  Status (*set_preference)(Preference, int attribute, const void *value,
                           size_t bytes);
  Status (*propose)(Handle, Description, Layout a, Layout b, Layout c, Layout d,
                    Preference, int wanted, Proposal *proposals, int *found);
  Status (*multiply)(Handle, Description, const void *alpha, const void *a,
                     Layout, const void *b, Layout, const void *beta,
                     const void *c, Layout, void *d, Layout,
                     const uint64_t *algorithm, void *workspace,
                     size_t workspace_bytes, cudaStream_t);
};

namespace {

template <class Function>
bool find(void *file, const char *name, Function &function) {
  function = reinterpret_cast<Function>(dlsym(file, name));
  return function != nullptr;
}

void *open_file() {
  const char *named = getenv("STEADYKV_CUBLASLT");
  if (named != nullptr && *named != '\0') {
    return dlopen(named, RTLD_NOW | RTLD_LOCAL);
  }
  static const char *const kNames[] = {"libcublasLt.so.13", "libcublasLt.so.12",
                                       "/usr/local/cuda/lib64/libcublasLt.so"};
  for (const char *name : kNames) {
    void *file = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (file != nullptr) return file;
  }
  return nullptr;
}

// Something of the library's that is destroyed at the end of a block.
template <class T>
class Owned {
 public:
  explicit Owned(Status (*destroy)(T)) : destroy_(destroy) {}
  ~Owned() {
    if (it_ != nullptr) destroy_(it_);
  }
  Owned(const Owned &) = delete;
  Owned &operator=(const Owned &) = delete;

  T *address() { return &it_; }
  T get() const { return it_; }

 private:
  T it_ = nullptr;
  Status (*destroy_)(T);
};

}  // namespace

MatrixLibrary::MatrixLibrary() = default;

std::unique_ptr<MatrixLibrary> MatrixLibrary::open() {
  std::unique_ptr<MatrixLibrary> library(new MatrixLibrary);
  void *file = open_file();
  if (file == nullptr) return nullptr;
  library->functions_ = std::make_unique<Functions>();
  Functions &f = *library->functions_;
  const bool complete =
      find(file, "cublasLtCreate", f.create) &&
      find(file, "cublasLtDestroy", f.destroy) &&
      find(file, "cublasLtMatmulDescCreate", f.create_description) &&
      find(file, "cublasLtMatmulDescDestroy", f.destroy_description) &&
      find(file, "cublasLtMatmulDescSetAttribute", f.set_description) &&
      find(file, "cublasLtMatrixLayoutCreate", f.create_layout) &&
      find(file, "cublasLtMatrixLayoutDestroy", f.destroy_layout) &&
      find(file, "cublasLtMatmulPreferenceCreate", f.create_preference) &&
      find(file, "cublasLtMatmulPreferenceDestroy", f.destroy_preference) &&
      find(file, "cublasLtMatmulPreferenceSetAttribute", f.set_preference) &&
      find(file, "cublasLtMatmulAlgoGetHeuristic", f.propose) &&
      find(file, "cublasLtMatmul", f.multiply);
  if (!complete || f.create(&library->handle_) != kSuccess) return nullptr;
  return library;
}

// The file stays open: libraries that use the device are not made to be closed
// before the process ends.
MatrixLibrary::~MatrixLibrary() {
  if (handle_ != nullptr) functions_->destroy(handle_);
}

// The library's matrices go down their columns. So the weights are a matrix of
// `pitch` rows, which is transposed, and input and output have a column for
// each of our rows.
bool MatrixLibrary::multiply(const LibraryProduct &product, void *workspace,
                             cudaStream_t stream) {
  const Functions &f = *functions_;
  const skv_matrix &weight = product.weight;
  Owned<Description> description(f.destroy_description);
  Owned<Layout> left(f.destroy_layout), right(f.destroy_layout),
      result(f.destroy_layout);
  Owned<Preference> preference(f.destroy_preference);
  const size_t workspace_bytes = kWorkspaceBytes;
  Proposal proposal = {};
  int found = 0;
  const bool is_planned =
      f.create_description(description.address(), kComputeFloat, kFloat) ==
          kSuccess &&
      f.set_description(description.get(), kTransposeLeft, &kTransposed,
                        sizeof(kTransposed)) == kSuccess &&
      f.create_layout(left.address(), kHalf, weight.pitch, weight.rows,
                      weight.pitch) == kSuccess &&
      f.create_layout(right.address(), kHalf, weight.pitch, product.rows,
                      weight.pitch) == kSuccess &&
      f.create_layout(result.address(), kFloat, weight.rows, product.rows,
                      weight.rows) == kSuccess &&
      f.create_preference(preference.address()) == kSuccess &&
      f.set_preference(preference.get(), kMaxWorkspaceBytes, &workspace_bytes,
                       sizeof(workspace_bytes)) == kSuccess &&
      f.propose(handle_, description.get(), left.get(), right.get(),
                result.get(), result.get(), preference.get(), 1, &proposal,
                &found) == kSuccess &&
      found > 0 && proposal.status == kSuccess;
  if (!is_planned) return false;
  const float one = 1.0f, zero = 0.0f;
  return f.multiply(handle_, description.get(), &one, weight.data, left.get(),
                    product.input, right.get(), &zero, product.output,
                    result.get(), product.output, result.get(),
                    proposal.algorithm, workspace, kWorkspaceBytes,
                    stream) == kSuccess;
}
