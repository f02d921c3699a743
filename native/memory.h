// Memory for packed weights: 2 MiB-aligned and advised to be huge pages, so that streaming them misses few TLB entries.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace axiond {

// `bytes` zeroed bytes, 64-byte aligned. Small buffers share a mapping, which is unmapped with the last of them.
// Throws std::bad_alloc.
std::shared_ptr<uint8_t> huge_buffer(size_t bytes);

}  // namespace axiond
