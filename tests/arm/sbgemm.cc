// BLAS's sbgemm_ for a torch that has none: bfloat16 times bfloat16 into float, column-major. Plain loops, for tests.
#include <cstddef>
#include <cstdint>
#include <cstring>

static float widen(uint16_t bits) {
  const uint32_t word = uint32_t{bits} << 16;
  float value;
  std::memcpy(&value, &word, sizeof value);
  return value;
}

extern "C" void sbgemm_(const char* transa, const char* transb, const int* m, const int* n, const int* k,
                        const float* alpha, const uint16_t* a, const int* lda, const uint16_t* b, const int* ldb,
                        const float* beta, float* c, const int* ldc) {
  const auto at = [](const char* trans, const uint16_t* matrix, size_t row, size_t column, size_t ld) {
    const bool is_transposed = *trans != 'N' && *trans != 'n';
    return widen(is_transposed ? matrix[row * ld + column] : matrix[column * ld + row]);
  };
  for (int column = 0; column < *n; ++column)
    for (int row = 0; row < *m; ++row) {
      float sum = 0;
      for (int p = 0; p < *k; ++p) sum += at(transa, a, row, p, *lda) * at(transb, b, p, column, *ldb);
      float& out = c[size_t(column) * *ldc + row];
      out = *alpha * sum + (*beta == 0 ? 0 : *beta * out);
    }
}
