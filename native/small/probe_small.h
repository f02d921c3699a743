#pragma once

#include <string>

#include "../probe/request.h"

namespace axiond {

// Runs one small operation between forbidden pages. What it returns is the outputs, one after the other.
std::string small_once(const Request& request, bool at_end);
bool is_small(const Request& request);
const char* small_level();

}  // namespace axiond
