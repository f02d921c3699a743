#pragma once

#include <pybind11/pybind11.h>

namespace axiond {

void bind_small(pybind11::module_& module);

}  // namespace axiond
