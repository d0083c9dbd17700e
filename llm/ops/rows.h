// Small matrices that lie in the cache, row by row, in dimensions padded to whole vectors.
#pragma once
#include "gemm.h"
#include <algorithm>
#include <vector>

// b [columns, rows] = a [rows, columns] transposed; both are multiples of the vector.
template <class U> static void transpose(int64_t rows, int64_t columns, const U* a, int64_t lda, U* b, int64_t ldb) {
    constexpr int64_t W = VECTOR_BYTES / sizeof(U);
#if defined(__clang__) || !defined(__AVX2__)
    for (int64_t i = 0; i < rows; i += W)
        for (int64_t j = 0; j < columns; j++)
            for (int64_t k = 0; k < W; k++) b[j * ldb + i + k] = a[(i + k) * lda + j];
#else
    typedef std::conditional_t<sizeof(U) == 4, int32_t, int64_t> Bits;
    typedef typename Vector<Bits>::type Block;
    for (int64_t i = 0; i < rows; i += W)
        for (int64_t j = 0; j < columns; j += W) {
            Block x[W];
            for (int64_t k = 0; k < W; k++) std::memcpy(&x[k], a + (i + k) * lda + j, VECTOR_BYTES);
            // the two blocks off the diagonal change places: in each 2 x 2, then in each 4 x 4 of those, ...
#pragma GCC unroll 4
            for (int64_t s = 1; s < W; s *= 2) {
                Block upper, lower;
                for (int64_t c = 0; c < W; c++) upper[c] = c & s ? W + c - s : c, lower[c] = c & s ? W + c : c + s;
#pragma GCC unroll 16
                for (int64_t k = 0; k < W; k++)
                    if (!(k & s)) {
                        const Block above = x[k], below = x[k + s];
                        x[k] = __builtin_shuffle(above, below, upper);
                        x[k + s] = __builtin_shuffle(above, below, lower);
                    }
            }
            for (int64_t k = 0; k < W; k++) std::memcpy(b + (j + k) * ldb + i, &x[k], VECTOR_BYTES);
        }
#endif
}

// A matrix whose rows are padded to whole vectors, with zeros.
template <class T> struct Rows {
    int64_t rows, width, padded;
    std::vector<T> values;
    Rows(int64_t rows, int64_t width) : Rows(rows, width, whole_vectors<T>(width)) {}
    Rows(int64_t rows, int64_t width, int64_t padded) : rows(rows), width(width), padded(padded), values(rows * padded, T()) {}
    T* operator[](int64_t row) { return &values[row * padded]; }
    const T* operator[](int64_t row) const { return &values[row * padded]; }
    T* data() { return values.data(); }

    // the first `columns` of `count` rows that lie `stride` apart; rows after those are 0.
    template <class In> void read(const In* from, int64_t stride, int64_t count, int64_t columns) {
        for (int64_t t = 0; t < rows; t++) {
            T* to = (*this)[t];
            if (t < count)
                for (int64_t i = 0; i < columns; i++) to[i] = as<T>(from[t * stride + i]);
            else
                std::fill_n(to, padded, T());
        }
    }
    template <class Out> void write(Out* to, int64_t stride, int64_t count, int64_t columns, T factor = 1) {
        for (int64_t t = 0; t < count; t++)
            for (int64_t i = 0; i < columns; i++) store(T(factor * (*this)[t][i]), to + t * stride + i);
    }
    // a whole matrix [count, width]
    template <class In> void read_matrix(const In* from, int64_t count) { read(from, width, count, width); }
    template <class Out> void write_matrix(Out* to, int64_t count) {
        for (int64_t r = 0; r < count; r++)
            for (int64_t i = 0; i < width; i++) to[r * width + i] = as<Out>((*this)[r][i]);
    }
    void fill(T value) { std::fill(values.begin(), values.end(), value); }
    // `from`, as large, in this dtype
    template <class From> void assign(const Rows<From>& from) {
        for (int64_t i = 0; i < rows * padded; i++) values[i] = as<T>(from.values[i]);
    }
    // and with a factor for each row
    template <class From, class Sum> void scaled(const Rows<From>& from, const Sum* factor) {
        for (int64_t t = 0; t < rows; t++)
            for (int64_t i = 0; i < padded; i++) (*this)[t][i] = as<T>(factor[t] * load(from[t][i]));
    }
    void add(const Rows& from) {
        for (int64_t i = 0; i < rows * padded; i++) values[i] += from.values[i];
    }
    void add_scaled(Rows& from, const T* factor) {
        for (int64_t t = 0; t < rows; t++)
            for (int64_t i = 0; i < padded; i++) (*this)[t][i] += factor[t] * from[t][i];
    }
};

// Rows that are multiplied, on the left as they are or transposed, on the right likewise.
template <class E> struct Factor : Rows<E> {
    using Unit = typename Units<E>::unit;
    static constexpr int64_t size = Units<E>::size;
    std::vector<Unit> stacked_units, turned_units;
    Factor(int64_t rows, int64_t width) : Rows<E>(rows, width, whole_vectors<E>(width)) {}

    // units along the rows: the left factor
    View<E> left() { return {reinterpret_cast<const Unit*>(this->data()), this->padded / size, 1}; }
    // units of rows that follow each other: the right factor and, transposed, the left one
    View<E> stacked() {
        if constexpr (size == 2) {
            stacked_units.resize(this->rows / 2 * this->padded);
            for (int64_t r = 0; r < this->rows / 2; r++) {
                const E *first = (*this)[2 * r], *second = (*this)[2 * r + 1];
                Pair* to = &stacked_units[r * this->padded];
#pragma omp simd
                for (int64_t i = 0; i < this->padded; i++) to[i].bits = first[i].bits | uint32_t(second[i].bits) << 16;
            }
            return {stacked_units.data(), this->padded, 1};
        } else
            return {this->data(), this->padded, 1};
    }
    // the right factor, transposed
    View<E> turned() {
        turned_units.resize(this->rows * this->padded / size);
        transpose(this->rows, this->padded / size, left().units, this->padded / size, turned_units.data(), this->rows);
        return {turned_units.data(), this->rows, 1};
    }
};

template <class T, class In> static T dot(const T* a, const In* b, int64_t n) {
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++) sum += a[i] * load(b[i]);
    return sum;
}
