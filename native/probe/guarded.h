// A buffer between two pages that may not be touched.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <new>
#include <string>

namespace axiond {

class Guarded {
 public:
  // The buffer ends right before a forbidden page (at_end), or begins right behind one.
  Guarded(int64_t size, bool at_end) : size_(size_t(size)) {
    const size_t page = size_t(sysconf(_SC_PAGESIZE));
    const size_t inside = (size_ + page - 1) / page * page;
    whole_ = inside + 2 * page;
    base_ = static_cast<uint8_t*>(mmap(nullptr, whole_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (base_ == MAP_FAILED) throw std::bad_alloc();
    mprotect(base_ + page, inside, PROT_READ | PROT_WRITE);
    std::memset(base_ + page, 0xa5, inside);
    begin_ = base_ + page + (at_end ? inside - size_ : 0);
  }
  Guarded(const std::string& content, bool at_end) : Guarded(int64_t(content.size()), at_end) {
    std::memcpy(begin_, content.data(), size_);
  }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;
  ~Guarded() { munmap(base_, whole_); }

  uint8_t* bytes() const { return begin_; }
  std::string text() const { return {reinterpret_cast<char*>(begin_), size_}; }

 private:
  size_t size_, whole_;
  uint8_t *base_, *begin_;
};

}  // namespace axiond
