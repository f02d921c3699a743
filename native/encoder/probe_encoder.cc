// The probe's request for a whole encoder: buffers are ids, lengths, and all tensors in the order in which they are read.
#include "probe_encoder.h"

#include "../probe/guarded.h"
#include "encoder.h"

namespace axiond {

using namespace encoder;

std::string encode_once(const Request& r, bool at_end) {
  const Shape shape{r.number("vocabulary"), r.number("positions"), r.number("first_position"), r.number("hidden"),
                    r.number("intermediate"), r.number("layers"), r.number("heads"), 1e-12f, r.number("pools_mean") != 0};
  const auto type = Dtype(r.number("type"));
  const char* next = r.data(2).data();
  Model model(shape, [&](const std::string& name, int64_t elements) -> Source {
    const char* const from = next;
    next += elements * size_of(type);
    if (next > r.data(2).data() + r.data(2).size()) throw std::invalid_argument(name + " is beyond the buffer");
    return {from, type};
  });
  const Guarded ids(r.data(0), at_end), lengths(r.data(1), at_end);
  const int64_t texts = int64_t(r.data(1).size()) / 4;
  Guarded out(texts * shape.hidden * 4, at_end);
  model.encode(reinterpret_cast<const int32_t*>(ids.bytes()), reinterpret_cast<const int32_t*>(lengths.bytes()), texts,
               reinterpret_cast<float*>(out.bytes()));
  return out.text();
}

const char* encoder_level() { return name_of(encoder::level().isa); }

}  // namespace axiond
