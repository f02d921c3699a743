#include "bind.h"

#include <pybind11/stl.h>

#include <stdexcept>

#include "../memory.h"
#include "linear.h"
#include "pack.h"

namespace py = pybind11;

namespace axiond {
namespace {

using namespace linear;

template <typename T>
const T* at(uintptr_t address) {
  return reinterpret_cast<const T*>(address);
}

Rhs described(Format format, Dtype scale_type, int64_t n, int64_t k, int group, uintptr_t data) {
  if (group != 32 && group != 64 && group != 128)
    throw py::value_error("group: wanted 32, 64 or 128, got " + std::to_string(group));
  if (n <= 0 || k <= 0 || k % group)
    throw py::value_error("n and k: wanted above 0 and k a multiple of " + std::to_string(group) + ", got n = " +
                          std::to_string(n) + ", k = " + std::to_string(k));
  if (data % 64) throw py::value_error("data: wanted an address that is a multiple of 64");
  return {format, scale_type, n, k, group, at<uint8_t>(data)};
}

uint8_t* writable(const Rhs& rhs) { return const_cast<uint8_t*>(rhs.data); }

// Memory that Python sees through the buffer protocol and frees with the last view of it.
struct Buffer {
  std::shared_ptr<uint8_t> memory;
  int64_t bytes;
};

Op op_of(const std::string& name) {
  if (name == "q4") return Op::q4;
  if (name == "q8") return Op::q8;
  if (name == "q4_exact") return Op::q4_exact;
  if (name == "bf16") return Op::bf16;
  throw py::value_error("op: wanted q4, q8, q4_exact or bf16, got " + name);
}

void run_linear(const Rhs& rhs, uintptr_t x, Dtype type, int64_t m, int64_t x_stride, uintptr_t bias,
                uintptr_t dst, bool exact) {
  const py::gil_scoped_release release;
  run({rhs, exact, m, at<void>(x), type, x_stride, at<void>(bias), reinterpret_cast<void*>(dst)});
}

}  // namespace

void bind_linear(py::module_& module) {
  py::enum_<Format>(module, "Format").value("q4", Format::q4).value("q8", Format::q8).value("bf16", Format::bf16);
  py::enum_<Nibbles>(module, "Nibbles")
      .value("bytes", Nibbles::bytes)
      .value("signed_bytes", Nibbles::signed_bytes)
      .value("words", Nibbles::words)
      .value("awq", Nibbles::awq);
  py::enum_<Dtype>(module, "Dtype").value("f32", Dtype::f32).value("f16", Dtype::f16).value("bf16", Dtype::bf16);

  py::class_<Buffer>(module, "Buffer", py::buffer_protocol())
      .def(py::init([](int64_t bytes) { return Buffer{huge_buffer(size_t(bytes)), bytes}; }))
      .def_buffer([](Buffer& b) { return py::buffer_info(b.memory.get(), b.bytes, false); });

  py::class_<Rhs>(module, "Rhs")
      .def(py::init(&described), py::arg("format"), py::arg("scale_type"), py::arg("n"), py::arg("k"),
           py::arg("group"), py::arg("data"))
      .def_readonly("n", &Rhs::n)
      .def_readonly("k", &Rhs::k)
      .def_property_readonly("bytes", [](const Rhs& rhs) { return rhs.panels() * rhs.panel_bytes(); });

  module.def("pack_q4", [](const Rhs& rhs, uintptr_t q, Nibbles kind, int64_t stride_n, int64_t stride_k,
                           uintptr_t scales, uintptr_t zero_points) {
    const py::gil_scoped_release release;
    pack_q4(rhs, {at<void>(q), kind, stride_n, stride_k}, at<uint16_t>(scales), at<uint8_t>(zero_points), writable(rhs));
  });
  module.def("pack_q8", [](const Rhs& rhs, uintptr_t q, uintptr_t scales) {
    const py::gil_scoped_release release;
    pack_q8(rhs, at<int8_t>(q), at<float>(scales), writable(rhs));
  });
  module.def("round_q8", [](const Rhs& rhs, uintptr_t weight, Dtype type) {
    const py::gil_scoped_release release;
    round_q8(rhs, at<void>(weight), type, writable(rhs));
  });
  module.def("pack_bf16", [](const Rhs& rhs, uintptr_t weight) {
    const py::gil_scoped_release release;
    pack_bf16(rhs, at<uint16_t>(weight), writable(rhs));
  });
  module.def("linear", &run_linear, py::arg("rhs"), py::arg("x"), py::arg("type"), py::arg("m"), py::arg("x_stride"),
             py::arg("bias"), py::arg("dst"), py::arg("exact"));

  module.def("kernel_for", [](const std::string& op, int64_t m) { return std::string(choose(op_of(op), m).name); });
  module.def("isa", [] { return py::dict(py::arg("detected") = name_of(detected_isa()),
                                         py::arg("active") = name_of(active_isa())); });
  module.def("force_isa", &force_isa, py::arg("name"));
}

}  // namespace axiond
