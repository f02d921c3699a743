// The Python module axiond.kernels._native. No arithmetic here: addresses and shapes come checked from Python.
#include <pybind11/pybind11.h>

#include "linear/bind.h"
#include "small/bind.h"

PYBIND11_MODULE(_native, module) {
  axiond::bind_linear(module);
  axiond::bind_small(module);
}
