// Scratch memory of one call: aligned for the widest vectors, uninitialised.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>
#include <utility>

namespace sparsekern {

template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t size) : size_(size) {
    if (size == 0) return;
    const size_t bytes = (size_t(size) * sizeof(T) + 63) / 64 * 64;
    data_ = static_cast<T*>(std::aligned_alloc(64, bytes));
    if (!data_) throw std::bad_alloc();
  }
  ~Buffer() { std::free(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  Buffer(Buffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

  T* data() { return data_; }
  const T* data() const { return data_; }
  int64_t size() const { return size_; }

 private:
  T* data_ = nullptr;
  int64_t size_;
};

}  // namespace sparsekern
