// Products of small matrices that lie in the cache, in dimensions padded to whole vectors.
#pragma once
#include "simd.h"
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#ifdef __AVX512F__
static constexpr int64_t VECTOR_BYTES = 64, TILE_ROWS = 8;
#else
static constexpr int64_t VECTOR_BYTES = 32, TILE_ROWS = 4;
#endif

template <class T> struct Vector {
    typedef T type __attribute__((vector_size(VECTOR_BYTES), aligned(alignof(T)), may_alias));
    static constexpr int64_t size = VECTOR_BYTES / sizeof(T);
};

template <class T> constexpr int64_t whole_vectors(int64_t n) {
    constexpr int64_t size = VECTOR_BYTES / sizeof(T);
    return (n + size - 1) / size * size;
}

// What is multiplied comes in units: one number, or two bfloat16, whose products some processors add to a float at once.
struct __attribute__((may_alias)) Pair {
    uint32_t bits;
};
template <class E> struct Units {
    typedef E unit, sum;
    static constexpr int64_t size = 1;
};
template <> struct Units<bfloat16> {
    typedef Pair unit;
    typedef float sum;
    static constexpr int64_t size = 2;
};

// What streams of `In` are multiplied as, where sums are T.
#ifdef __AVX512BF16__
template <class In, class T> using Multiplied = In;
#else
template <class In, class T> using Multiplied = T;
#endif

template <class Vec, class T> INLINE void add_product(Vec& sum, T a, const Vec& b) { sum += a * b; }
#ifdef __AVX512BF16__
INLINE void add_product(Vector<float>::type& sum, Pair a, const Vector<float>::type& b) {
    sum = _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32(a.bits), (__m512bh)b);
}
#endif

// A matrix of units; element (i, k) lies at units[i * row + k * column].
template <class E> struct View {
    const typename Units<E>::unit* units;
    int64_t row, column;
    View transposed() const { return {units, column, row}; }
};

// c[R rows][N vectors] = keep c + factor a b over units in [first, last); without `factor`, 1 for each row
template <class E, int64_t R, int64_t N, class T = typename Units<E>::sum>
INLINE void tile(int64_t first, int64_t last, View<E> a, View<E> b, T* c, int64_t ldc, T keep, const T* factor) {
    using Vec = typename Vector<T>::type;
    Vec sum[R][N] = {};
    for (int64_t k = first; k < last; k++) {
        const Vec* bk = reinterpret_cast<const Vec*>(b.units + k * b.row);
        for (int64_t i = 0; i < R; i++)
            for (int64_t j = 0; j < N; j++) add_product(sum[i][j], a.units[i * a.row + k * a.column], bk[j]);
    }
    for (int64_t i = 0; i < R; i++) {
        Vec* ci = reinterpret_cast<Vec*>(c + i * ldc);
        for (int64_t j = 0; j < N; j++) {
            const Vec found = factor ? factor[i] * sum[i][j] : sum[i][j];
            ci[j] = keep == 0 ? found : keep * ci[j] + found;
        }
    }
}

// What is known to be zero in `a`, or not wanted of `c`: LOWER: a(i, k) = 0 for k > i; UPPER: for k < i; LOWER_OUT: c(i, j) for j > i.
enum Triangle { FULL, LOWER, UPPER, LOWER_OUT };

// c [M, N] = keep c + factor[i] a [M, K] b [K, N]. M is a multiple of TILE_ROWS, N of the vector, K of the unit; b's column is 1.
// Not inlined: among others' variables the sums would not stay in registers.
template <class E>
__attribute__((noinline)) static void gemm(int64_t M, int64_t N, int64_t K, View<E> a, View<E> b, typename Units<E>::sum* c, int64_t ldc,
                 Triangle triangle = FULL, typename Units<E>::sum keep = 0, const typename Units<E>::sum* factor = nullptr) {
    using T = typename Units<E>::sum;
    constexpr int64_t W = Vector<T>::size, unit = Units<E>::size;
    for (int64_t i = 0; i < M; i += TILE_ROWS) {
        const int64_t end = i + TILE_ROWS, first = triangle == UPPER ? i / unit : 0;
        const int64_t last = (triangle == LOWER && end < K ? end : K) / unit;
        const int64_t wide = triangle == LOWER_OUT && whole_vectors<T>(end) < N ? whole_vectors<T>(end) : N;
        const View<E> ai = {a.units + i * a.row, a.row, a.column};
        const T* fi = factor ? factor + i : nullptr;
        int64_t j = 0;
        for (; j + 2 * W <= wide; j += 2 * W)
            tile<E, TILE_ROWS, 2>(first, last, ai, {b.units + j, b.row, 1}, c + i * ldc + j, ldc, keep, fi);
        if (j < wide) tile<E, TILE_ROWS, 1>(first, last, ai, {b.units + j, b.row, 1}, c + i * ldc + j, ldc, keep, fi);
    }
}

// c [M, N] (+)= a b, of plain rows
template <class T>
static void gemm(int64_t M, int64_t N, int64_t K, const T* a, int64_t row, int64_t column, const T* b, int64_t ldb, T* c, int64_t ldc,
                 Triangle triangle = FULL, bool add = false) {
    gemm(M, N, K, View<T>{a, row, column}, View<T>{b, ldb, 1}, c, ldc, triangle, T(add));
}
