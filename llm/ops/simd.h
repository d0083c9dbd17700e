// The elementary functions of the loops, and bfloat16. The float forms are plain arithmetic, so that compilers make vector code of
// them in any loop; their relative error is a few units in the last place. The double forms are the standard library's.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#define INLINE inline __attribute__((always_inline))

INLINE float exp_(float x) {
    // 2^n e^r with |r| <= ln(2) / 2; adding `shift` rounds to an integer, which then lies in the low bits
    const float shift = 12582912.0f;
    float y = x < -87.0f ? -87.0f : x;
    y = y > 88.5f ? 88.5f : y;
    float shifted = y * 1.44269504f + shift;
    float n = shifted - shift;
    float r = (y - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    int32_t bits;
    std::memcpy(&bits, &shifted, 4);
    int32_t scale_bits = (bits + 127) << 23;
    float scale;
    std::memcpy(&scale, &scale_bits, 4);
    float e = p * scale;
    e = x < -87.0f ? 0.0f : e;
    return x > 88.5f ? INFINITY : e;
}

INLINE float tanh_(float x) {
    float a = std::fabs(x), s = x * x;
    float p = -5.70498872745e-3f;
    p = p * s + 2.06390887954e-2f;
    p = p * s - 5.37397155531e-2f;
    p = p * s + 1.33314422036e-1f;
    p = p * s - 3.33332819422e-1f;
    float small = p * s * x + x;
    float large = 1.0f - 2.0f / (exp_(2.0f * a) + 1.0f);
    return a < 0.625f ? small : (x < 0 ? -large : large);
}

// log(1 + x) for 0 <= x <= 1: twice the series of artanh(x / (2 + x))
INLINE float log1p_(float x) {
    float s = x / (2.0f + x), q = s * s;
    float p = 1.0f / 17;
    p = p * q + 1.0f / 15;
    p = p * q + 1.0f / 13;
    p = p * q + 1.0f / 11;
    p = p * q + 1.0f / 9;
    p = p * q + 1.0f / 7;
    p = p * q + 1.0f / 5;
    p = p * q + 1.0f / 3;
    return 2.0f * (s + s * q * p);
}

INLINE double exp_(double x) { return std::exp(x); }
INLINE double tanh_(double x) { return std::tanh(x); }
INLINE double log1p_(double x) { return std::log1p(x); }

template <class T> INLINE T sigmoid(T x) {
    T e = exp_(-std::fabs(x)), s = 1 / (1 + e);
    return x < 0 ? e * s : s;
}

template <class T> INLINE T logsigmoid(T x) { return (x < 0 ? x : T(0)) - log1p_(exp_(-std::fabs(x))); }

// Streams may be in a narrower dtype than sums.
struct bfloat16 {
    uint16_t bits;
};

template <class T> INLINE T load(T x) { return x; }
INLINE float load(bfloat16 x) {
    uint32_t wide = uint32_t(x.bits) << 16;
    float value;
    std::memcpy(&value, &wide, 4);
    return value;
}
template <class T> INLINE void store(T value, T* to) { *to = value; }
INLINE void store(float value, bfloat16* to) {
    uint32_t wide;
    std::memcpy(&wide, &value, 4);
    uint32_t rounded = (wide + 0x7fff + ((wide >> 16) & 1)) >> 16;
    to->bits = uint16_t(value != value ? 0x7fc0 : rounded);
}
template <class To, class From> INLINE To as(From x) {
    To y;
    if constexpr (std::is_same_v<To, From>)
        y = x;
    else
        store(load(x), &y);
    return y;
}
