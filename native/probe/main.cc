// Runs kernels on data from stdin, each buffer between two pages that nobody may touch.
//
// One request is a line of words "op name=value ..." followed by its buffers, raw; one answer is a line "ok BYTES
// KERNEL" followed by the result, or "error MESSAGE". Every request runs twice, with the buffers pressed against the
// page behind and against the page before them, and the results have to be equal.
#include <omp.h>

#include <cstdio>
#include <exception>
#include <iostream>
#include <string>

#include "../encoder/probe_encoder.h"
#include "../linear/linear.h"
#include "../linear/pack.h"
#include "../small/probe_small.h"
#include "guarded.h"
#include "request.h"

using namespace axiond;

namespace {

std::string linear_once(const Request& r, bool at_end) {
  using namespace linear;
  const std::string op = r.text("op");
  const int64_t m = r.number("m"), n = r.number("n"), k = r.number("k"), group = r.number("group");
  const auto type = Dtype(r.number("type"));
  Rhs rhs{op == "q8" ? Format::q8 : op == "bf16" ? Format::bf16 : Format::q4, Dtype(r.number("scale_type")), n, k,
          int(group), nullptr};
  Guarded data(rhs.panels() * rhs.panel_bytes(), at_end);
  rhs.data = data.bytes();
  if (rhs.format == Format::q4)
    pack_q4(rhs, {r.buffer<uint8_t>(0), Nibbles::bytes, k, 1}, r.buffer<uint16_t>(1), r.buffer<uint8_t>(2), data.bytes());
  else if (rhs.format == Format::q8)
    pack_q8(rhs, r.buffer<int8_t>(0), r.buffer<float>(1), data.bytes());
  else
    pack_bf16(rhs, r.buffer<uint16_t>(0), data.bytes());

  const Guarded x(r.data(3), at_end), bias(r.data(4), at_end);
  Guarded dst(m * n * size_of(type), at_end);
  Job job{rhs, op == "q4_exact", m, x.bytes(), type, k, r.data(4).empty() ? nullptr : bias.bytes(), dst.bytes()};
  const int threads = int(r.number("threads"));
  Guarded work((work_bytes(job) + 63) / 64 * 64, at_end);
#pragma omp parallel num_threads(threads)
  {
    prepare(job, work.bytes(), omp_get_thread_num(), omp_get_num_threads());
#pragma omp barrier
    multiply(job, work.bytes(), omp_get_thread_num(), omp_get_num_threads());
  }
  return dst.text();
}

std::string linear_kernel(const Request& r) {
  const std::string op = r.text("op");
  using linear::Op;
  return linear::choose(op == "q8" ? Op::q8 : op == "bf16" ? Op::bf16 : op == "q4_exact" ? Op::q4_exact : Op::q4,
                        r.number("m"))
      .name;
}

void answer(const Request& r) {
  force_isa(r.text("isa"));
  if (r.name() == "isa") return reply("", name_of(active_isa()));
  if (r.name() == "choose") return reply("", linear_kernel(r));
  if (r.name() == "linear") return reply_if_equal(linear_once(r, true), linear_once(r, false), linear_kernel(r));
  if (r.name() == "encode") return reply_if_equal(encode_once(r, true), encode_once(r, false), encoder_level());
  if (is_small(r)) return reply_if_equal(small_once(r, true), small_once(r, false), small_level());
  throw std::invalid_argument("unknown request " + r.name());
}

}  // namespace

int main() {
  std::ios::sync_with_stdio(false);
  for (Request request; request.read(std::cin);) {
    try {
      answer(request);
    } catch (const std::exception& problem) {
      std::cout << "error " << problem.what() << std::endl;
    }
  }
}
