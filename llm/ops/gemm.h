// Small matrices that lie in the cache, row by row, in dimensions padded to whole vectors, and their products.
#pragma once
#include "simd.h"
#include <algorithm>
#include <vector>

#ifdef __AVX512F__
static constexpr int64_t VECTOR_BYTES = 64, TILE_ROWS = 8;
#else
static constexpr int64_t VECTOR_BYTES = 32, TILE_ROWS = 4;
#endif

template <class T> struct Vector {
    typedef T type __attribute__((vector_size(VECTOR_BYTES), aligned(alignof(T))));
    static constexpr int64_t size = VECTOR_BYTES / sizeof(T);
};

template <class T> constexpr int64_t whole_vectors(int64_t n) { return (n + Vector<T>::size - 1) / Vector<T>::size * Vector<T>::size; }

// c[R rows][N vectors] (+)= a b over k in [first, last); a's element (i, k) lies at a[i * row + k * column]
template <class T, int64_t R, int64_t N>
INLINE void tile(int64_t first, int64_t last, const T* a, int64_t row, int64_t column, const T* b, int64_t ldb, T* c, int64_t ldc, bool add) {
    using Vec = typename Vector<T>::type;
    Vec sum[R][N] = {};
    for (int64_t k = first; k < last; k++) {
        const Vec* bk = reinterpret_cast<const Vec*>(b + k * ldb);
        for (int64_t i = 0; i < R; i++)
            for (int64_t j = 0; j < N; j++) sum[i][j] += a[i * row + k * column] * bk[j];
    }
    for (int64_t i = 0; i < R; i++) {
        Vec* ci = reinterpret_cast<Vec*>(c + i * ldc);
        for (int64_t j = 0; j < N; j++) ci[j] = add ? ci[j] + sum[i][j] : sum[i][j];
    }
}

// What is known to be zero in `a`, or not wanted of `c`: LOWER: a(i, k) = 0 for k > i; UPPER: for k < i; LOWER_OUT: c(i, j) for j > i.
enum Triangle { FULL, LOWER, UPPER, LOWER_OUT };

// c [M, N] (+)= a [M, K] b [K, N]. M is a multiple of TILE_ROWS, N of the vector.
template <class T>
static void gemm(int64_t M, int64_t N, int64_t K, const T* a, int64_t row, int64_t column, const T* b, int64_t ldb, T* c, int64_t ldc,
                 Triangle triangle = FULL, bool add = false) {
    constexpr int64_t W = Vector<T>::size;
    for (int64_t i = 0; i < M; i += TILE_ROWS) {
        const int64_t end = i + TILE_ROWS, first = triangle == UPPER ? i : 0, last = triangle == LOWER && end < K ? end : K;
        const int64_t wide = triangle == LOWER_OUT && whole_vectors<T>(end) < N ? whole_vectors<T>(end) : N;
        int64_t j = 0;
        for (; j + 2 * W <= wide; j += 2 * W) tile<T, TILE_ROWS, 2>(first, last, a + i * row, row, column, b + j, ldb, c + i * ldc + j, ldc, add);
        if (j < wide) tile<T, TILE_ROWS, 1>(first, last, a + i * row, row, column, b + j, ldb, c + i * ldc + j, ldc, add);
    }
}

template <class T> static void transpose(int64_t rows, int64_t columns, const T* a, int64_t lda, T* b, int64_t ldb) {
    constexpr int64_t W = Vector<T>::size;
    for (int64_t i = 0; i < rows; i += W)
        for (int64_t j = 0; j < columns; j++)
            for (int64_t k = 0; k < W; k++) b[j * ldb + i + k] = a[(i + k) * lda + j];
}

// A matrix whose rows are padded to whole vectors, with zeros.
template <class T> struct Rows {
    int64_t rows, width, padded;
    std::vector<T> values;
    Rows(int64_t rows, int64_t width) : rows(rows), width(width), padded(whole_vectors<T>(width)), values(rows * padded, T(0)) {}
    T* operator[](int64_t row) { return &values[row * padded]; }
    T* data() { return values.data(); }

    // the first `columns` of `count` rows that lie `stride` apart; rows after those are 0
    template <class In> void read(const In* from, int64_t stride, int64_t count, int64_t columns, T factor = 1) {
        for (int64_t t = 0; t < rows; t++) {
            T* to = (*this)[t];
            if (t < count)
                for (int64_t i = 0; i < columns; i++) to[i] = factor * load(from[t * stride + i]);
            else
                std::fill_n(to, padded, T(0));
        }
    }
    template <class Out> void write(Out* to, int64_t stride, int64_t count, int64_t columns, T factor = 1) {
        for (int64_t t = 0; t < count; t++)
            for (int64_t i = 0; i < columns; i++) store(T(factor * (*this)[t][i]), to + t * stride + i);
    }
    // a whole matrix [count, width]
    void read_matrix(const T* from, int64_t count) {
        for (int64_t r = 0; r < count; r++) std::copy_n(from + r * width, width, (*this)[r]);
    }
    void write_matrix(T* to, int64_t count) {
        for (int64_t r = 0; r < count; r++) std::copy_n((*this)[r], width, to + r * width);
    }
    void fill(T value) { std::fill(values.begin(), values.end(), value); }
    // rows of `from` times a factor each
    void scaled(Rows& from, const T* factor) {
        for (int64_t t = 0; t < rows; t++)
            for (int64_t i = 0; i < padded; i++) (*this)[t][i] = factor[t] * from[t][i];
    }
    void add_scaled(Rows& from, const T* factor) {
        for (int64_t t = 0; t < rows; t++)
            for (int64_t i = 0; i < padded; i++) (*this)[t][i] += factor[t] * from[t][i];
    }
};

template <class T> static T dot(const T* a, const T* b, int64_t n) {
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}
