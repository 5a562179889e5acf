// What the kernels of compress hand to each other: lists of the slots and
// staged rows of each KV head, here called items.
#pragma once

#include "../runtime/launch.cuh"
#include "expected_attention.cuh"
#include "scores.cuh"
#include "slots.cuh"
#include "step.cuh"
#include "value_spread.cuh"

// Threads of the blocks that work on a whole head.
constexpr uint32_t kCompressThreads = 512;
constexpr uint32_t kCompressWarps = kCompressThreads / 32;

// Whether pairs merge that cost least.
__host__ __device__ inline bool merges_cheapest(const skv_policy &policy) {
  return policy.merge == SKV_MERGE_PAIR;
}

// Set in an item that is a row of the stage; the rest is its row.
constexpr uint32_t kStaged = 0x80000000u;

// Marks of items.
constexpr uint32_t kTaken = 1;     // is an end of a pair already
constexpr uint32_t kAccepted = 2;  // proposed a pair that is merged
constexpr uint32_t kGone = 4;      // was merged into another
constexpr uint32_t kVictim = 8;    // has to go

enum Counter {
  kItems = 0,
  kQueries = 1,
  kCandidates = 2,
  kMembers = 3,
  // Items that were merged away by now.
  kPairs = 4,
  // How far the values of the head scatter before anything is merged; a float.
  kSpread = 5,
  // Staged rows that go into free slots: of the ordinals in `queries`, into the
  // slots in `candidates`.
  kMoved = 6,
  // Pairs of the round, listed by who proposed them in `queries`.
  kMatched = 7,
  // Tiles of a search of pairs.
  kPairTiles = 8,
  kCounters = 9
};

// An item as those that price pairs see it, in the order in which they go
// through items.
struct alignas(16) PlacedItem {
  uint32_t item;
  uint32_t ordinal;
  uint32_t position;
  // ln of what it weighs in a merge.
  float weight;
  // Of its key and of its value.
  float squares[2];
  // Places of those that are about as heavy: all before are heavier, all behind
  // lighter.
  uint32_t first;
  uint32_t end;
};

// Queries of a tile of lib/group_pairs.cuh, and candidates.
constexpr uint32_t kPairTileItems = 128;

// Lists of one KV head, `most` long each.
struct HeadWork {
  // Index of a slot in its head, or kStaged and a row.
  uint32_t *items;
  uint32_t *marks;
  // Where they are not those of the slots themselves: see lib/ratings.cuh.
  float *scores;
  // 1 / |key|, or 0 for a zero key.
  float *inverse_norms;
  // What items are sorted by, and the best key that touches an item. While
  // pairs are matched, those of proposals.
  uint64_t *keys;
  uint64_t *best;
  // The item that an item is to be merged into.
  uint32_t *mates;
  // Items whose nearest candidate is looked for, and the candidates.
  uint32_t *queries;
  uint32_t *candidates;
  float *divergences;
  // (parts, most): by query
  float *similarities;
  uint32_t *nearest;
  // Where queries are expected.
  Expectation expected;
  // Where the cheapest pairs are merged: see lib/value_spread.cuh.
  float *spreads;
  // There too: the weight, the squares of key and value and the position of
  // each item; queries and candidates by place, candidates behind queries where
  // they are others; and for each tile of queries how many tiles of candidates
  // those before it have.
  float4 *measures;
  PlacedItem *placed;
  uint32_t *row_starts;
  // (kCounters)
  uint32_t *counters;
};

struct CompressWork {
  char *memory;
  size_t head_bytes;
  uint32_t most;
  // Parts that candidates are searched in.
  uint32_t parts;
  // Query heads of a group whose queries are expected.
  uint32_t expected_heads;
  // Floats by which the scatter of the values of a head is found.
  uint32_t spread_words;
  // Items whose pairs may be priced.
  uint32_t most_priced;

  // Bytes of one head's lists.
  size_t bytes() const {
    const size_t states = expected_heads == 0 ? 0 : expect_parts(most);
    return aligned(static_cast<size_t>(most) * 4) *
               (7 + 2 * parts + expected_heads) +
           aligned(static_cast<size_t>(most) * 8) * 2 +
           aligned(states * kMaxGroup * sizeof(float2)) +
           aligned(static_cast<size_t>(spread_words) * 4) +
           aligned(static_cast<size_t>(most_priced) * sizeof(float4)) +
           aligned(static_cast<size_t>(most_priced) * sizeof(PlacedItem)) +
           aligned(row_words() * 4) + aligned(kCounters * 4);
  }

  __host__ __device__ size_t row_words() const {
    return most_priced / kPairTileItems + 2;
  }

  __host__ __device__ static size_t aligned(size_t bytes) {
    return (bytes + 255) / 256 * 256;
  }

  __device__ HeadWork head(uint32_t kv_head) const {
    char *at = memory + kv_head * head_bytes;
    const auto take = [&](size_t bytes) {
      char *const taken = at;
      at += aligned(bytes);
      return taken;
    };
    const size_t words = static_cast<size_t>(most) * 4;
    HeadWork work;
    work.items = reinterpret_cast<uint32_t *>(take(words));
    work.marks = reinterpret_cast<uint32_t *>(take(words));
    work.scores = reinterpret_cast<float *>(take(words));
    work.inverse_norms = reinterpret_cast<float *>(take(words));
    work.mates = reinterpret_cast<uint32_t *>(take(words));
    work.queries = reinterpret_cast<uint32_t *>(take(words));
    work.candidates = reinterpret_cast<uint32_t *>(take(words));
    work.keys = reinterpret_cast<uint64_t *>(take(2 * words));
    work.best = reinterpret_cast<uint64_t *>(take(2 * words));
    work.counters = reinterpret_cast<uint32_t *>(take(kCounters * 4));
    // A head's divergences share the memory of `best`, which is free by then.
    work.divergences = reinterpret_cast<float *>(work.best);
    work.similarities = reinterpret_cast<float *>(take(parts * aligned(words)));
    work.nearest = reinterpret_cast<uint32_t *>(take(parts * aligned(words)));
    work.expected.pitch = part_pitch();
    work.expected.logits =
        reinterpret_cast<float *>(take(expected_heads * aligned(words)));
    work.spreads =
        reinterpret_cast<float *>(take(static_cast<size_t>(spread_words) * 4));
    const size_t priced = most_priced;
    work.measures = reinterpret_cast<float4 *>(take(priced * sizeof(float4)));
    work.placed =
        reinterpret_cast<PlacedItem *>(take(priced * sizeof(PlacedItem)));
    work.row_starts = reinterpret_cast<uint32_t *>(take(row_words() * 4));
    work.expected.states = reinterpret_cast<float2 *>(at);
    return work;
  }

  // Words from one part of `similarities` and `nearest` to the next.
  __device__ uint32_t part_pitch() const {
    return static_cast<uint32_t>(aligned(static_cast<size_t>(most) * 4) / 4);
  }
};

// One KV head of the chunk's sequence.
struct ChunkHead {
  uint32_t kv_head;
  uint32_t rows;
  // Position of the newest token.
  uint32_t newest;
  uint32_t *words;
};

__device__ inline ChunkHead chunk_head(const skv_chunk_args &args,
                                       uint32_t kv_head) {
  const uint32_t rows = row_end(args.step);
  const uint32_t sequence = args.step.chunk[kChunkSequence];
  return {kv_head, rows, args.step.chunk[kChunkPosition] + rows - 1,
          head_words(args.cache, args.sizes, sequence, kv_head)};
}

__device__ inline Slot item_slot(const skv_chunk_args &args,
                                 const ChunkHead &head, uint32_t item) {
  const skv_cache &cache = args.cache;
  const bool staged = (item & kStaged) != 0;
  const uint32_t index =
      staged ? head.kv_head * cache.stage_rows + (item & ~kStaged)
             : head.words[kHeadOffset] + item;
  return slot_at(staged ? cache.stage : cache.slots, index,
                 args.sizes.head_dim);
}

__device__ inline bool item_is_evictable(const skv_chunk_args &args,
                                         const ChunkHead &head, uint32_t item) {
  return is_evictable(item_slot(args, head, item).word(kSlotPosition),
                      args.policy, head.words[kHeadRecent], head.newest);
}

// Adds up what the merges of a head cost. Called by the whole block.
__device__ inline void add_divergences(const ChunkHead &head,
                                       const HeadWork &work, uint32_t victims,
                                       SelectScratch &scratch) {
  float divergence = 0.0f;
  for (uint32_t v = threadIdx.x; v < victims; v += kCompressThreads) {
    divergence += work.divergences[v];
  }
  divergence = block_sum(divergence, scratch);
  if (threadIdx.x == 0) {
    head.words[kHeadDivergence] = __float_as_uint(
        __uint_as_float(head.words[kHeadDivergence]) + divergence);
  }
}
