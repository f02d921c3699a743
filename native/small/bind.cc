#include "bind.h"

#include "small.h"

namespace py = pybind11;

namespace axiond {
namespace {

using namespace small;

template <typename T = void>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

}  // namespace

// These calls keep the GIL: they take microseconds, and letting go of it and taking it again would be a good part of it.
void bind_small(py::module_& module) {
  module.def("rms_norm", [](int type, int weight_type, int64_t rows, int64_t n, uintptr_t x, int64_t inner_rows,
                            int64_t x_stride, int64_t x_inner_stride, uintptr_t residual, int64_t residual_stride,
                            uintptr_t sum, uintptr_t weight, float weight_offset, float epsilon, uintptr_t out) {
    run(RmsNorm{rows, n, Dtype(type), Dtype(weight_type), at(x), inner_rows, x_stride, x_inner_stride, at(residual),
                residual_stride, at(sum), at(weight), weight_offset, epsilon, at(out), n});
  });
  module.def("gate", [](int type, int activation, int64_t rows, int64_t n, uintptr_t gate, uintptr_t up, int64_t stride,
                        uintptr_t out) {
    run(Gate{rows, n, Dtype(type), Activation(activation), at(gate), at(up), stride, at(out), n});
  });
  module.def("rotary", [](int type, int64_t rows, int64_t head_size, int64_t rotary_dim, bool interleaved,
                          uintptr_t positions, uintptr_t cos_sin, uintptr_t query, int64_t query_heads,
                          int64_t query_stride, uintptr_t key, int64_t key_heads, int64_t key_stride) {
    run(Rotary{rows, head_size, rotary_dim, Dtype(type), interleaved, at<int64_t>(positions), at(cos_sin), at(query),
               query_heads, query_stride, head_size, at(key), key_heads, key_stride, head_size});
  });
  module.def("softmax", [](int64_t rows, int64_t n, uintptr_t x, int64_t x_stride, uintptr_t out, bool log) {
    const py::gil_scoped_release release;
    run(Softmax{rows, n, at<float>(x), x_stride, at<float>(out), n, log});
  });
  module.def("argmax", [](int type, int64_t rows, int64_t n, uintptr_t x, int64_t x_stride, uintptr_t out) {
    const py::gil_scoped_release release;
    run(Argmax{rows, n, Dtype(type), at(x), x_stride, at<int64_t>(out)});
  });
  module.def("top_k_top_p", [](int64_t rows, int64_t n, uintptr_t x, int64_t x_stride, uintptr_t k, uintptr_t p) {
    const py::gil_scoped_release release;
    run(TopKTopP{rows, n, at<float>(x), x_stride, at<int64_t>(k), at<float>(p)});
  });
  module.def("small_isa", [] { return name_of(level().isa); });
}

}  // namespace axiond
