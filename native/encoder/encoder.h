// Sentence embeddings by a BERT: token ids in, vectors of length 1 out. On the calling thread, without OpenMP.
//
// Linear layers multiply in int8 as linear.h says: weights are rounded per row, activations per token and group of k.
// Everything else is IEEE single precision, in an order that the shapes alone fix. So a vector does not depend on the
// instruction set or on the other texts, to the last bit.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "../linear/linear.h"
#include "ops.h"

namespace axiond::encoder {

struct Shape {
  int64_t vocabulary;
  int64_t positions, first_position;  // rows of the table, and the row of the first token
  int64_t hidden, intermediate;       // multiples of 32
  int64_t layers;
  int64_t heads;  // of a multiple of 16 each
  float norm_epsilon;
  bool pools_mean;  // or the first token

  int64_t most_tokens() const { return positions - first_position; }
};

struct Source {
  const void* data;
  Dtype type;
};

// Where the tensor of this name lies, which has so many elements. It has to stay until the next call.
using Read = std::function<Source(const std::string& name, int64_t elements)>;

struct Linear {
  linear::Rhs rhs;
  const float* bias;
};

struct Layer {
  Linear qkv, mixed, up, down;
  Norm attention_norm, output_norm;
};

class Model {
 public:
  Model(const Shape& shape, const Read& read);

  const Shape& shape() const { return shape_; }
  int64_t bytes() const { return bytes_; }

  // out[texts][hidden], from the ids of all texts one after the other. Each length is at most most_tokens(), each id
  // below the vocabulary; a text without tokens becomes zeros. For one thread at a time.
  void encode(const int32_t* ids, const int32_t* lengths, int64_t texts, float* out);

 private:
  struct Batch;
  class Work;

  void forward(const Batch& batch, float* out);
  void embed(const Batch& batch, float* x) const;
  void attend(const Batch& batch, const Work& work) const;
  void add_norm(const Norm& norm, const float* more, float* x, int64_t rows) const;

  Shape shape_;
  const Level& level_;
  std::shared_ptr<uint8_t> memory_;
  int64_t bytes_ = 0;
  const uint16_t* words_;    // [vocabulary][hidden] in float16
  const float* positions_;   // [most_tokens][hidden], the first token type added
  Norm norm_;
  std::vector<Layer> layers_;
  std::shared_ptr<Work> work_;
};

}  // namespace axiond::encoder
