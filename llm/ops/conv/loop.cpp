// The short causal depthwise convolution of naive.py and its gradient: streams are read and written once.
//
// A task is one row of the batch and a block of channels through all of time. Inputs before the first token are the tail's. `In` is
// the dtype of the streams, T that of weights and sums. Results do not depend on the number of threads.
#include "simd.h"
#include <algorithm>
#include <vector>

static constexpr int64_t LANES = 64;
// tokens whose gradients of the weights are summed before they join the rest
static constexpr int64_t SPAN = 128;

struct Shape {
    int64_t B, S, D, W;  // batch, tokens, channels, taps
};

template <class T, class In> struct Block {
    const In *x, *tail;
    int64_t b, first, lanes;
    Shape s;
    std::vector<int64_t> reach;  // how many tokens back each token looks

    Block(const In* x, const In* tail, const bool* starts, int64_t b, int64_t first, Shape s)
        : x(x), tail(tail), b(b), first(first), lanes(std::min(LANES, s.D - first)), s(s), reach(s.S) {
        int64_t back = s.W - 1;
        for (int64_t t = 0; t < s.S; t++) {
            back = starts && starts[b * s.S + t] ? 0 : std::min(back + 1, s.W - 1);
            reach[t] = back;
        }
    }
    // the inputs at token t, or before the first one
    const In* input(int64_t t) const {
        return t < 0 ? tail + (b * (s.W - 1) + s.W - 1 + t) * s.D + first : x + (b * s.S + t) * s.D + first;
    }
    template <class P> P* at(P* y, int64_t t) const { return y + (b * s.S + t) * s.D + first; }
    template <class P> P* of_tail(P* y, int64_t j) const { return y + (b * (s.W - 1) + j) * s.D + first; }
    // whether the tail that leaves holds the input `lag` tokens behind the last
    bool kept(int64_t lag) const { return lag <= reach[s.S - 1]; }
};

template <class T, class In, class Body> static void over_blocks(const In* x, const In* tail, const bool* starts, Shape s, int64_t threads, Body body) {
    const int64_t blocks = (s.D + LANES - 1) / LANES;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t task = 0; task < s.B * blocks; task++) body(Block<T, In>(x, tail, starts, task / blocks, task % blocks * LANES, s));
}

template <class T, class In> INLINE void add_product(T* sum, const T* weight, const In* x, int64_t lanes) {
#pragma omp simd
    for (int64_t l = 0; l < lanes; l++) sum[l] += weight[l] * load(x[l]);
}

// weight [W, D], the tap of the current token first; bias [D] or null; tail and after [B, W - 1, D]
template <class T, class In>
static void forward(const In* x, const T* weight, const T* bias, const In* tail, const bool* starts, In* y, In* after, Shape s, int64_t threads) {
    over_blocks<T>(x, tail, starts, s, threads, [&](const Block<T, In>& block) {
        for (int64_t t = 0; t < s.S; t++) {
            T sum[LANES] = {};
            if (bias) std::copy_n(bias + block.first, block.lanes, sum);
            for (int64_t lag = 0; lag <= block.reach[t]; lag++)
                add_product(sum, weight + lag * s.D + block.first, block.input(t - lag), block.lanes);
            In* to = block.at(y, t);
            for (int64_t l = 0; l < block.lanes; l++) store(sum[l], to + l);
        }
        for (int64_t lag = 0; lag < s.W - 1; lag++) {
            In* to = block.of_tail(after, s.W - 2 - lag);
            if (block.kept(lag))
                std::copy_n(block.input(s.S - 1 - lag), block.lanes, to);
            else
                std::fill_n(to, block.lanes, In{});
        }
    });
}

// dweight [B, W, D] and dbias [B, D] come per row of the batch: their sums are the caller's.
template <class T, class In>
static void backward(const In* x, const T* weight, const In* tail, const bool* starts, const In* dy, const In* dafter, In* dx, T* dweight,
                     T* dbias, In* dtail, Shape s, int64_t threads) {
    over_blocks<T>(x, tail, starts, s, threads, [&](const Block<T, In>& block) {
        for (int64_t t = -(s.W - 1); t < s.S; t++) {
            T sum[LANES] = {};
            for (int64_t lag = std::max(int64_t(0), -t); lag < s.W && t + lag < s.S; lag++)
                if (lag <= block.reach[t + lag]) add_product(sum, weight + lag * s.D + block.first, block.at(dy, t + lag), block.lanes);
            const int64_t behind = s.S - 1 - t;
            if (behind < s.W - 1 && block.kept(behind)) {
                const In* more = block.of_tail(dafter, s.W - 2 - behind);
                for (int64_t l = 0; l < block.lanes; l++) sum[l] += load(more[l]);
            }
            In* to = t < 0 ? block.of_tail(dtail, s.W - 1 + t) : block.at(dx, t);
            for (int64_t l = 0; l < block.lanes; l++) store(sum[l], to + l);
        }
        std::vector<T> total((s.W + 1) * LANES, T(0)), part((s.W + 1) * LANES);
        for (int64_t first = 0; first < s.S; first += SPAN) {
            std::fill(part.begin(), part.end(), T(0));
            for (int64_t t = first; t < std::min(first + SPAN, s.S); t++) {
                T d[LANES];
                const In* from = block.at(dy, t);
                for (int64_t l = 0; l < block.lanes; l++) d[l] = load(from[l]), part[s.W * LANES + l] += d[l];
                for (int64_t lag = 0; lag <= block.reach[t]; lag++) add_product(&part[lag * LANES], d, block.input(t - lag), block.lanes);
            }
            for (size_t i = 0; i < total.size(); i++) total[i] += part[i];
        }
        for (int64_t lag = 0; lag < s.W; lag++)
            std::copy_n(&total[lag * LANES], block.lanes, dweight + (block.b * s.W + lag) * s.D + block.first);
        std::copy_n(&total[s.W * LANES], block.lanes, dbias + block.b * s.D + block.first);
    });
}

#define EXPORT(In, T)                                                                                                                     \
    extern "C" void forward_##In(const In* x, const T* weight, const T* bias, const In* tail, const bool* starts, In* y, In* after,       \
                                 int64_t batch, int64_t tokens, int64_t channels, int64_t taps, int64_t threads) {                        \
        forward<T, In>(x, weight, bias, tail, starts, y, after, {batch, tokens, channels, taps}, threads);                                \
    }                                                                                                                                     \
    extern "C" void backward_##In(const In* x, const T* weight, const In* tail, const bool* starts, const In* dy, const In* dafter,       \
                                  In* dx, T* dweight, T* dbias, In* dtail, int64_t batch, int64_t tokens, int64_t channels, int64_t taps, \
                                  int64_t threads) {                                                                                      \
        backward<T, In>(x, weight, tail, starts, dy, dafter, dx, dweight, dbias, dtail, {batch, tokens, channels, taps}, threads);        \
    }

EXPORT(float, float)
EXPORT(double, double)
EXPORT(bfloat16, float)
