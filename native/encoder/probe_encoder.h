#pragma once

#include <string>

#include "../probe/request.h"

namespace axiond {

// Embeds texts between forbidden pages. The answer is the vectors.
std::string encode_once(const Request& request, bool at_end);
const char* encoder_level();

}  // namespace axiond
