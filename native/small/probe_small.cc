// The probe's requests for the small operations. Outputs lie in buffers with gaps between rows, which have to stay as
// they were; they are part of the answer.
#include "probe_small.h"

#include <map>

#include "../probe/guarded.h"
#include "small.h"

namespace axiond {
namespace {

using namespace small;

std::string rms_norm_once(const Request& r, bool at_end) {
  const Guarded x(r.data(0), at_end), weight(r.data(2), at_end);
  Guarded residual(r.data(1), at_end), out(r.data(3), at_end);
  run(RmsNorm{r.number("rows"), r.number("n"), Dtype(r.number("type")), Dtype(r.number("weight_type")), x.bytes(),
              r.number("inner_rows"), r.number("x_stride"), r.number("x_inner_stride"),
              r.data(1).empty() ? nullptr : residual.bytes(), r.number("stride"), residual.bytes(),
              r.data(2).empty() ? nullptr : weight.bytes(), float(r.number("weight_offset")), 1e-6f, out.bytes(),
              r.number("stride")});
  return out.text() + residual.text();
}

std::string gate_once(const Request& r, bool at_end) {
  const Guarded gate(r.data(0), at_end), up(r.data(1), at_end);
  Guarded out(r.data(2), at_end);
  run(Gate{r.number("rows"), r.number("n"), Dtype(r.number("type")), Activation(r.number("activation")), gate.bytes(),
           up.bytes(), r.number("stride"), out.bytes(), r.number("stride")});
  return out.text();
}

std::string rotary_once(const Request& r, bool at_end) {
  const Guarded positions(r.data(0), at_end), cos_sin(r.data(1), at_end);
  Guarded query(r.data(2), at_end), key(r.data(3), at_end);
  run(Rotary{r.number("rows"), r.number("head_size"), r.number("rotary_dim"), Dtype(r.number("type")),
             r.number("interleaved") != 0, reinterpret_cast<const int64_t*>(positions.bytes()), cos_sin.bytes(),
             query.bytes(), r.number("query_heads"), r.number("query_stride"), r.number("head_size"), key.bytes(),
             r.number("key_heads"), r.number("key_stride"), r.number("head_size")});
  return query.text() + key.text();
}

float* floats(const Guarded& buffer) { return reinterpret_cast<float*>(buffer.bytes()); }

std::string softmax_once(const Request& r, bool at_end) {
  const Guarded x(r.data(0), at_end);
  Guarded out(r.data(1), at_end);
  const int64_t stride = r.number("stride");
  run(Softmax{r.number("rows"), r.number("n"), floats(x), stride, floats(out), stride, r.number("log") != 0});
  return out.text();
}

std::string argmax_once(const Request& r, bool at_end) {
  const Guarded x(r.data(0), at_end);
  Guarded out(r.number("rows") * 8, at_end);
  run(Argmax{r.number("rows"), r.number("n"), Dtype(r.number("type")), x.bytes(), r.number("stride"),
             reinterpret_cast<int64_t*>(out.bytes())});
  return out.text();
}

std::string top_once(const Request& r, bool at_end) {
  Guarded x(r.data(0), at_end);
  const Guarded k(r.data(1), at_end), p(r.data(2), at_end);
  run(TopKTopP{r.number("rows"), r.number("n"), floats(x), r.number("stride"),
               r.data(1).empty() ? nullptr : reinterpret_cast<const int64_t*>(k.bytes()),
               r.data(2).empty() ? nullptr : floats(p)});
  return x.text();
}

using Once = std::string (*)(const Request&, bool);
const std::map<std::string, Once> kOps = {{"rms_norm", rms_norm_once}, {"gate", gate_once},
                                          {"rotary", rotary_once},     {"softmax", softmax_once},
                                          {"argmax", argmax_once},     {"top_k_top_p", top_once}};

}  // namespace

bool is_small(const Request& request) { return kOps.count(request.name()) != 0; }

std::string small_once(const Request& request, bool at_end) { return kOps.at(request.name())(request, at_end); }

const char* small_level() { return name_of(level().isa); }

}  // namespace axiond
