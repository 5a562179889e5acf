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

struct TileMapWriter {
  int (*encode)(TileMap *map, int type, uint32_t dimensions, void *data,
                const uint64_t *sizes, const uint64_t *strides,
                const uint32_t *tile_sizes, const uint32_t *tile_strides,
                int interleave, int swizzle, int promotion, int fill);
};

const TileMapWriter *find_tile_maps(int compute_capability_major) {
  // The products that read such tiles are those of Hopper.
  if (compute_capability_major != 9) return nullptr;
  static const TileMapWriter writer = [] {
    TileMapWriter found = {};
    void *driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (driver != nullptr) {
      found.encode = reinterpret_cast<decltype(found.encode)>(
          dlsym(driver, "cuTensorMapEncodeTiled"));
    }
    return found;
  }();
  return writer.encode == nullptr ? nullptr : &writer;
}

bool describe_tiles(const TileMapWriter *writer, const TiledMatrix &matrix,
                    TileMap *map) {
  const uint64_t sizes[2] = {matrix.pitch, matrix.rows};
  const uint64_t strides[1] = {uint64_t{matrix.pitch} * sizeof(skv_half)};
  const uint32_t tile_sizes[2] = {kTileColumns, matrix.tile_rows};
  const uint32_t tile_strides[2] = {1, 1};
  return writer->encode(map, kHalf, 2, const_cast<skv_half *>(matrix.data),
                        sizes, strides, tile_sizes, tile_strides,
                        kNotInterleaved, kSwizzled128, kPromoted256,
                        kZeroFilled) == kSuccess;
}
