// The Python module axiond.kernels._native. No arithmetic here: addresses and shapes come checked from Python.
#include <pybind11/pybind11.h>

#include "linear/bind.h"
#if __has_include("small/bind.h")
#include "small/bind.h"
#endif

PYBIND11_MODULE(_native, module) {
  axiond::bind_linear(module);
#if __has_include("small/bind.h")
  axiond::bind_small(module);
#endif
}
