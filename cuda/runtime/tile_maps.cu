// The driver's function by its documented binary interface: it is looked for
// where the runtime has opened the driver, and nothing is linked.
#include <dlfcn.h>

#include "tile_maps.cuh"

namespace {

constexpr int kSuccess = 0;

// CUtensorMapDataType, CUtensorMapInterleave, CUtensorMapSwizzle,
// CUtensorMapL2promotion and CUtensorMapFloatOOBfill.
constexpr int kHalf = 6;
constexpr int kNotInterleaved = 0;
constexpr int kSwizzled128 = 3;
constexpr int kPromoted256 = 3;
constexpr int kZeroFilled = 0;

}  // namespace

std::unique_ptr<TileMaps> TileMaps::open(int compute_capability_major) {
  // Products of such tiles are Hopper's.
  if (compute_capability_major != 9) return nullptr;
  void *driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (driver == nullptr) return nullptr;
  const auto encode =
      reinterpret_cast<Encode>(dlsym(driver, "cuTensorMapEncodeTiled"));
  if (encode == nullptr) return nullptr;
  return std::unique_ptr<TileMaps>(new TileMaps(encode));
}

bool TileMaps::describe(const TiledMatrix &matrix, TileMap *map) const {
  const uint64_t sizes[2] = {matrix.pitch, matrix.rows};
  const uint64_t strides[1] = {uint64_t{matrix.pitch} * sizeof(skv_half)};
  const uint32_t tile_sizes[2] = {kTileColumns, matrix.tile_rows};
  const uint32_t tile_strides[2] = {1, 1};
  return encode_(map, kHalf, 2, const_cast<skv_half *>(matrix.data), sizes,
                 strides, tile_sizes, tile_strides, kNotInterleaved,
                 kSwizzled128, kPromoted256, kZeroFilled) == kSuccess;
}
