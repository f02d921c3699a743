#include "encoder.h"

#include <algorithm>
#include <cmath>
#include <new>

#include "../linear/pack.h"
#include "../memory.h"

namespace axiond::encoder {
namespace {

constexpr int64_t kBatchTokens = 256;  // from which texts are no longer put together
constexpr int64_t kBlockRows = 64;     // whose widest activations stay in the second cache

int64_t round_up(int64_t value, int64_t to) { return (value + to - 1) / to * to; }

int group_of(int64_t k) { return k % 128 == 0 ? 128 : k % 64 == 0 ? 64 : 32; }

linear::Rhs described(int64_t n, int64_t k, const uint8_t* data = nullptr) {
  return {linear::Format::q8, Dtype::f16, n, k, group_of(k), data};
}

int64_t bytes_of(const linear::Rhs& rhs) { return rhs.panels() * rhs.panel_bytes(); }

int64_t bytes_of(const Shape& s) {
  const int64_t per_layer = bytes_of(described(3 * s.hidden, s.hidden)) + bytes_of(described(s.hidden, s.hidden)) +
                            bytes_of(described(s.intermediate, s.hidden)) +
                            bytes_of(described(s.hidden, s.intermediate)) + 4 * (9 * s.hidden + s.intermediate);
  const int64_t tables = 2 * s.vocabulary * s.hidden + 4 * (s.most_tokens() + 2) * s.hidden;
  const int64_t tensors = 14 * s.layers + 4;  // each begins at a multiple of 64
  return tables + s.layers * per_layer + 64 * tensors;
}

// Puts tensors into memory, one behind the other.
class Loader {
 public:
  Loader(const Shape& shape, const Read& read, uint8_t* memory) : shape_(shape), read_(read), next_(memory) {}

  const uint16_t* words() {
    const int64_t n = shape_.vocabulary * shape_.hidden;
    const Source from = read_("embeddings.word_embeddings.weight", n);
    auto* to = take<uint16_t>(n);
    for (int64_t i = 0; i < n; ++i) to[i] = f32_to_f16(load(from.data, from.type, i));
    return to;
  }

  const float* positions() {
    const int64_t h = shape_.hidden, n = shape_.most_tokens() * h;
    const Source table = read_("embeddings.position_embeddings.weight", shape_.positions * h);
    auto* to = take<float>(n);
    for (int64_t i = 0; i < n; ++i) to[i] = load(table.data, table.type, shape_.first_position * h + i);
    const Source types = read_("embeddings.token_type_embeddings.weight", h);
    for (int64_t i = 0; i < n; ++i) to[i] += load(types.data, types.type, i % h);
    return to;
  }

  Norm norm(const std::string& name) {
    auto* to = take<float>(2 * shape_.hidden);
    copy(name + ".LayerNorm.weight", shape_.hidden, to);
    copy(name + ".LayerNorm.bias", shape_.hidden, to + shape_.hidden);
    return {to, to + shape_.hidden};
  }

  Linear linear(const std::string& name, int64_t n, int64_t k) { return pack({name}, n, k, 1); }

  // The queries are divided by the root of a head's size here, once for all.
  Linear qkv(const std::string& name) {
    const float factor = 1 / std::sqrt(float(shape_.hidden / shape_.heads));
    return pack({name + ".query", name + ".key", name + ".value"}, shape_.hidden, shape_.hidden, factor);
  }

 private:
  template <class T>
  T* take(int64_t elements) {
    auto* taken = reinterpret_cast<T*>(next_);
    next_ += round_up(elements * int64_t(sizeof(T)), 64);
    return taken;
  }

  void copy(const std::string& name, int64_t n, float* to) {
    const Source from = read_(name, n);
    for (int64_t i = 0; i < n; ++i) to[i] = load(from.data, from.type, i);
  }

  // Layers of n rows each below each other; `factor` multiplies the first.
  Linear pack(const std::vector<std::string>& names, int64_t n, int64_t k, float factor) {
    const int64_t all = n * int64_t(names.size());
    std::vector<float> weight(size_t(all * k));
    auto* bias = take<float>(all);
    for (size_t i = 0; i < names.size(); ++i) {
      copy(names[i] + ".weight", n * k, weight.data() + int64_t(i) * n * k);
      copy(names[i] + ".bias", n, bias + int64_t(i) * n);
    }
    std::for_each(weight.begin(), weight.begin() + n * k, [=](float& each) { each *= factor; });
    std::for_each(bias, bias + n, [=](float& each) { each *= factor; });
    uint8_t* data = take<uint8_t>(bytes_of(described(all, k)));
    const linear::Rhs rhs = described(all, k, data);
    linear::round_q8(rhs, weight.data(), Dtype::f32, data);
    return {rhs, bias};
  }

  const Shape& shape_;
  const Read& read_;
  uint8_t* next_;
};

linear::Job product(const Linear& layer, const float* x, int64_t rows, float* dst) {
  return {layer.rhs, false, rows, x, Dtype::f32, layer.rhs.k, layer.bias, dst};
}

}  // namespace

const Level& level() {
  const Isa active = active_isa();
#if defined(__aarch64__)
  if (permits(active, Isa::neon)) return kNeon;
#elif defined(__x86_64__)
  if (permits(active, Isa::avx512vnni)) return kAvx512vnni;
  if (permits(active, Isa::avx2)) return kAvx2;
#endif
  (void)active;
  return kPortable;
}

struct Model::Batch {
  const int32_t* ids;
  const int32_t* lengths;
  int64_t texts, tokens, longest;
};

// Where the activations of a batch lie.
class Model::Work {
 public:
  Work(const Model& model, const Batch& batch) : tokens_(batch.tokens), longest_(batch.longest) {
    const Shape& s = model.shape_;
    const int64_t rows = std::min(tokens_, kBlockRows), h = s.hidden;
    const Layer none{{described(3 * h, h), nullptr}, {described(h, h), nullptr}, {described(s.intermediate, h), nullptr},
                     {described(h, s.intermediate), nullptr}, {}, {}};
    int64_t linear_bytes = 0;
    for (const Linear* layer : {&none.qkv, &none.mixed})
      linear_bytes = std::max(linear_bytes, linear::work_bytes(product(*layer, nullptr, tokens_, nullptr)));
    for (const Linear* layer : {&none.up, &none.down})
      linear_bytes = std::max(linear_bytes, linear::work_bytes(product(*layer, nullptr, rows, nullptr)));
    float** const parts[] = {&x, &qkv, &mixed, &sum, &wide, &attention};
    const int64_t floats[] = {tokens_ * h, 3 * tokens_ * h, tokens_ * h, tokens_ * h, rows * s.intermediate,
                              attention_work(longest_, h / s.heads)};
    int64_t bytes = round_up(linear_bytes, 64);
    for (const int64_t each : floats) bytes += round_up(4 * each, 64);
    memory_.reset(static_cast<uint8_t*>(::operator new(size_t(bytes), kAlignment)));
    uint8_t* next = memory_.get();
    for (size_t i = 0; i < std::size(parts); next += round_up(4 * floats[i++], 64)) *parts[i] = reinterpret_cast<float*>(next);
    linear_ = next;
  }

  bool is_enough_for(const Batch& batch) const { return batch.tokens <= tokens_ && batch.longest <= longest_; }

  void multiply(const Linear& layer, const float* from, int64_t rows, float* to) const {
    const linear::Job job = product(layer, from, rows, to);
    linear::prepare(job, linear_, 0, 1);
    linear::multiply(job, linear_, 0, 1);
  }

  float *x, *qkv, *mixed, *sum, *wide, *attention;

 private:
  static constexpr auto kAlignment = std::align_val_t(64);
  struct Free {
    void operator()(uint8_t* memory) const { ::operator delete(memory, kAlignment); }
  };

  int64_t tokens_, longest_;
  std::unique_ptr<uint8_t, Free> memory_;
  uint8_t* linear_;
};

Model::Model(const Shape& shape, const Read& read)
    : shape_(shape), level_(encoder::level()), memory_(huge_buffer(size_t(bytes_of(shape)))), bytes_(bytes_of(shape)) {
  Loader loader(shape_, read, memory_.get());
  words_ = loader.words();
  positions_ = loader.positions();
  norm_ = loader.norm("embeddings");
  for (int64_t i = 0; i < shape.layers; ++i) {
    const std::string name = "encoder.layer." + std::to_string(i);
    const Linear qkv = loader.qkv(name + ".attention.self");
    const Linear mixed = loader.linear(name + ".attention.output.dense", shape.hidden, shape.hidden);
    const Norm attention_norm = loader.norm(name + ".attention.output");
    const Linear up = loader.linear(name + ".intermediate.dense", shape.intermediate, shape.hidden);
    const Linear down = loader.linear(name + ".output.dense", shape.hidden, shape.intermediate);
    layers_.push_back({qkv, mixed, up, down, attention_norm, loader.norm(name + ".output")});
  }
}

void Model::encode(const int32_t* ids, const int32_t* lengths, int64_t texts, float* out) {
  for (Batch batch{ids, lengths, 0, 0, 0}; texts > 0; batch = {batch.ids + batch.tokens, batch.lengths + batch.texts, 0, 0, 0}) {
    do {
      const int64_t length = batch.lengths[batch.texts++];
      batch.tokens += length;
      batch.longest = std::max(batch.longest, length);
    } while (batch.texts < texts && batch.tokens + batch.lengths[batch.texts] <= kBatchTokens);
    forward(batch, out);
    out += batch.texts * shape_.hidden;
    texts -= batch.texts;
  }
}

void Model::forward(const Batch& batch, float* out) {
  if (batch.tokens == 0) return void(std::fill_n(out, batch.texts * shape_.hidden, 0.0f));
  if (!work_ || !work_->is_enough_for(batch)) work_ = std::make_shared<Work>(*this, batch);
  const Work& work = *work_;
  const int64_t h = shape_.hidden, rows = batch.tokens;
  embed(batch, work.x);
  for (const Layer& layer : layers_) {
    work.multiply(layer.qkv, work.x, rows, work.qkv);
    attend(batch, work);
    work.multiply(layer.mixed, work.mixed, rows, work.sum);
    add_norm(layer.attention_norm, work.sum, work.x, rows);
    for (int64_t first = 0; first < rows; first += kBlockRows) {
      const int64_t count = std::min(kBlockRows, rows - first);
      float* x = work.x + first * h;
      work.multiply(layer.up, x, count, work.wide);
      level_.gelu(work.wide, count * shape_.intermediate);
      work.multiply(layer.down, work.wide, count, work.sum);
      add_norm(layer.output_norm, work.sum, x, count);
    }
  }
  const float* x = work.x;
  for (int64_t i = 0; i < batch.texts; x += batch.lengths[i++] * h, out += h) {
    level_.mean(x, shape_.pools_mean ? batch.lengths[i] : std::min(batch.lengths[i], 1), h, out);
    level_.to_length_1(out, h);
  }
}

void Model::embed(const Batch& batch, float* x) const {
  const int32_t* id = batch.ids;
  for (int64_t i = 0; i < batch.texts; ++i)
    for (int64_t p = 0; p < batch.lengths[i]; ++p, x += shape_.hidden) {
      level_.widen(words_ + *id++ * shape_.hidden, shape_.hidden, x);
      level_.add_norm(x, positions_ + p * shape_.hidden, shape_.hidden, norm_, shape_.norm_epsilon);
    }
}

void Model::attend(const Batch& batch, const Work& work) const {
  int64_t first = 0;
  for (int64_t i = 0; i < batch.texts; first += batch.lengths[i++])
    level_.attend({batch.lengths[i], shape_.heads, shape_.hidden / shape_.heads, work.qkv + 3 * first * shape_.hidden,
                   work.mixed + first * shape_.hidden, work.attention});
}

void Model::add_norm(const Norm& norm, const float* more, float* x, int64_t rows) const {
  for (int64_t r = 0; r < rows; ++r)
    level_.add_norm(x + r * shape_.hidden, more + r * shape_.hidden, shape_.hidden, norm, shape_.norm_epsilon);
}

}  // namespace axiond::encoder
