// The Python module axiond.semantic._encoder. No arithmetic here; what is checked here is what keeps memory safe.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <mutex>

#include "encoder.h"

namespace py = pybind11;

namespace axiond {
namespace {

using encoder::Model;
using encoder::Shape;
using encoder::Source;

Dtype type_of(const std::string& name) {
  if (name == "F32") return Dtype::f32;
  if (name == "F16") return Dtype::f16;
  if (name == "BF16") return Dtype::bf16;
  throw py::value_error("type: wanted F32, F16 or BF16, got " + name);
}

void check(const Shape& s) {
  for (const int64_t size : {s.vocabulary, s.positions, s.hidden, s.intermediate, s.layers, s.heads})
    if (size < 1 || size >= int64_t(1) << 24) throw py::value_error("sizes: wanted 1 to 2^24, got " + std::to_string(size));
  if (s.hidden % 32 || s.intermediate % 32 || s.hidden % (16 * s.heads))
    throw py::value_error("sizes: wanted multiples of 32 with heads of multiples of 16");
  if (s.first_position < 0 || s.first_position >= s.positions)
    throw py::value_error("first_position: wanted 0 to below " + std::to_string(s.positions) + ", got " + std::to_string(s.first_position));
}

// Read the weights through `read(name)`, which gives bytes and their type, with the interpreter's lock held only there.
std::unique_ptr<Model> load(const Shape& shape, const py::function& read) {
  check(shape);
  py::object held;
  const auto source = [&](const std::string& name, int64_t elements) -> Source {
    const py::gil_scoped_acquire lock;
    const auto [bytes, type_name] = read(name).cast<std::pair<py::bytes, std::string>>();
    held = bytes;
    const Dtype type = type_of(type_name);
    const auto size = std::string_view(bytes).size();
    if (int64_t(size) < elements * size_of(type))
      throw py::value_error(name + ": wanted " + std::to_string(elements * size_of(type)) + " bytes, got " + std::to_string(size));
    return {std::string_view(bytes).data(), type};
  };
  const py::gil_scoped_release release;
  return std::make_unique<Model>(shape, source);
}

template <class T>
T* checked(const py::buffer_info& info, const char* name) {
  if (info.format != py::format_descriptor<std::remove_const_t<T>>::format() || !PyBuffer_IsContiguous(info.view(), 'C'))
    throw py::value_error(std::string(name) + ": wanted a contiguous array of " + py::format_descriptor<std::remove_const_t<T>>::format());
  return static_cast<T*>(info.ptr);
}

class Encoder {
 public:
  Encoder(const Shape& shape, const py::function& read) : model_(load(shape, read)) {}

  int64_t bytes() const { return model_->bytes(); }

  void encode(const py::buffer& ids, const py::buffer& lengths, const py::buffer& out) {
    const py::buffer_info i = ids.request(), l = lengths.request(), o = out.request(true);
    const auto* id = checked<const int32_t>(i, "ids");
    const auto* length = checked<const int32_t>(l, "lengths");
    auto* to = checked<float>(o, "out");
    check(id, i.size, length, l.size, o.size);
    const py::gil_scoped_release release;
    const std::lock_guard<std::mutex> lock(mutex_);
    model_->encode(id, length, l.size, to);
  }

 private:
  void check(const int32_t* ids, int64_t tokens, const int32_t* lengths, int64_t texts, int64_t floats) const {
    const Shape& shape = model_->shape();
    int64_t sum = 0;
    for (int64_t i = 0; i < texts; sum += lengths[i++])
      if (lengths[i] < 0 || lengths[i] > shape.most_tokens())
        throw py::value_error("lengths: wanted 0 to " + std::to_string(shape.most_tokens()) + ", got " + std::to_string(lengths[i]));
    if (sum != tokens)
      throw py::value_error("ids: wanted " + std::to_string(sum) + " by the lengths, got " + std::to_string(tokens));
    for (int64_t i = 0; i < tokens; ++i)
      if (ids[i] < 0 || ids[i] >= shape.vocabulary)
        throw py::value_error("ids: wanted below " + std::to_string(shape.vocabulary) + ", got " + std::to_string(ids[i]));
    if (floats != texts * shape.hidden)
      throw py::value_error("out: wanted " + std::to_string(texts * shape.hidden) + " floats, got " + std::to_string(floats));
  }

  std::unique_ptr<Model> model_;
  std::mutex mutex_;
};

}  // namespace
}  // namespace axiond

PYBIND11_MODULE(_encoder, module) {
  using namespace axiond;
  py::class_<Encoder>(module, "Encoder")
      .def(py::init([](int64_t vocabulary, int64_t positions, int64_t first_position, int64_t hidden, int64_t intermediate,
                       int64_t layers, int64_t heads, float norm_epsilon, bool pools_mean, const py::function& read) {
             const Shape shape{vocabulary, positions, first_position, hidden, intermediate, layers, heads, norm_epsilon, pools_mean};
             return std::make_unique<Encoder>(shape, read);
           }),
           py::kw_only(), py::arg("vocabulary"), py::arg("positions"), py::arg("first_position"), py::arg("hidden"),
           py::arg("intermediate"), py::arg("layers"), py::arg("heads"), py::arg("norm_epsilon"), py::arg("pools_mean"),
           py::arg("read"))
      .def("encode", &Encoder::encode, py::arg("ids"), py::arg("lengths"), py::arg("out"))
      .def_property_readonly("bytes", &Encoder::bytes);
  module.def("force_isa", &force_isa, py::arg("name"));
  module.def("kernels", [] {
    return py::dict(py::arg("linear") = std::string(linear::choose(linear::Op::q8, 64).name),
                    py::arg("others") = std::string(name_of(encoder::level().isa)));
  });
}
