// The table of a list of tensors.
#include "pieces.h"

namespace sparsekern {
namespace {

// As many as fit the 4 kB of kernel arguments that every device takes.
constexpr int kEntries = 64;

struct EntryList {
  Entry entries[kEntries];
};

__global__ void write_table(EntryList list, int count, Entry* table) {
  if (int(threadIdx.x) < count) table[threadIdx.x] = list.entries[threadIdx.x];
}

}  // namespace

int64_t count_chunks(const Pieces& pieces) {
  const int64_t size = chunk_elements(pieces.dtype);
  int64_t chunks = 0;
  for (const Piece& piece : pieces.list) chunks += (piece.count + size - 1) / size;
  return chunks;
}

Table make_table(const Where& where, const Pieces& pieces, void* scratch) {
  const int64_t size = chunk_elements(pieces.dtype);
  Entry* table = static_cast<Entry*>(scratch);
  const int total = int(pieces.list.size());
  int64_t first = 0, first_chunk = 0;
  EntryList list = {};
  for (int written = 0; written <= total;) {
    int count = 0;
    for (; count < kEntries && written + count <= total; ++count) {
      Entry& entry = list.entries[count];
      if (written + count == total) {
        entry = {nullptr, nullptr, 0, first, first_chunk, 0};
        continue;
      }
      const Piece& piece = pieces.list[size_t(written + count)];
      entry = {piece.data, piece.out, piece.count, first, first_chunk, piece.factor};
      first += piece.count;
      first_chunk += (piece.count + size - 1) / size;
    }
    launch("write_table", write_table, where, dim3(1), kEntries, list, count, table + written);
    written += count;
  }
  return {table, total, first_chunk};
}

}  // namespace sparsekern
