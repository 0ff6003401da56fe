// Token ids that grow at the end: a vector that does not clear what is about to be written.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <span>

namespace tinyllama {

template <typename Id>
class IdBuffer {
 public:
  std::size_t size() const { return size_; }
  Id* data() { return data_.get(); }
  Id* end() { return data_.get() + size_; }
  std::span<const Id> ids() const { return {data_.get(), size_}; }
  void clear() { size_ = 0; }

  // Room for `count` ids behind the end; the pointer holds until the next call.
  Id* make_room(std::size_t count) {
    if (capacity_ - size_ < count) grow(size_ + count);
    return end();
  }
  // Takes what was written behind the end, up to `end`.
  void set_end(const Id* end) { size_ = static_cast<std::size_t>(end - data_.get()); }

  void push_back(Id id) {
    *make_room(1) = id;
    ++size_;
  }

  // Gives the memory away, to be freed by std::free.
  Id* release() {
    size_ = capacity_ = 0;
    return data_.release();
  }

 private:
  struct Free {
    void operator()(Id* data) const { std::free(data); }
  };

  void grow(std::size_t wanted) {
    const std::size_t capacity = wanted + wanted / 2 + 64;
    void* grown = std::realloc(data_.get(), capacity * sizeof(Id));
    if (grown == nullptr) throw std::bad_alloc();
    static_cast<void>(data_.release());
    data_.reset(static_cast<Id*>(grown));
    capacity_ = capacity;
  }

  std::unique_ptr<Id, Free> data_;
  std::size_t size_ = 0;
  std::size_t capacity_ = 0;
};

}  // namespace tinyllama
