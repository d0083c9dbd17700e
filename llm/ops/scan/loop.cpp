// The selective scan of naive.py and its gradient, for one dtype.
//
// Channels come in groups that share B and C. A task is one row of the batch, one group and one of its parts; within it go blocks of L
// channels, whose state [N][L] stays in the first cache, token by token. Forward keeps the state before each span of tokens; backward
// makes a span's states again. Results do not depend on the number of threads.
#include "simd.h"
#include <algorithm>
#include <vector>

static constexpr int64_t L = 16;

struct Shape {
    int64_t B, S, G, d, N;  // batch, tokens, groups, channels of a group, states
    int64_t span, parts;
    int64_t D() const { return G * d; }
    int64_t spans() const { return (S + span - 1) / span; }
};

// Where a task's block of channels lies. Lanes past the group's end hold zeros.
struct Block {
    int64_t first, lanes;
    template <class T> void load(const T* from, T* to) const {
        for (int64_t l = 0; l < L; l++) to[l] = l < lanes ? from[first + l] : T(0);
    }
    template <class T> void store(const T* from, T* to) const {
        for (int64_t l = 0; l < lanes; l++) to[first + l] = from[l];
    }
    // [channels, N] <-> [N][L]
    template <class T> void load_states(const T* from, T* to, int64_t N) const {
        for (int64_t n = 0; n < N; n++)
            for (int64_t l = 0; l < L; l++) to[n * L + l] = l < lanes ? from[(first + l) * N + n] : T(0);
    }
    template <class T> void store_states(const T* from, T* to, int64_t N) const {
        for (int64_t n = 0; n < N; n++)
            for (int64_t l = 0; l < lanes; l++) to[(first + l) * N + n] = from[n * L + l];
    }
};

// body(row of the batch, group, part, the part's blocks)
template <class Body> static void over_parts(const Shape& s, int64_t threads, Body body) {
    const int64_t blocks = (s.d + L - 1) / L;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t task = 0; task < s.B * s.G * s.parts; task++) {
        const int64_t part = task % s.parts, g = task / s.parts % s.G, b = task / s.parts / s.G;
        std::vector<Block> mine;
        for (int64_t block = part * blocks / s.parts; block < (part + 1) * blocks / s.parts; block++)
            mine.push_back({g * s.d + block * L, std::min(L, s.d - block * L)});
        body(b, g, part, mine);
    }
}

template <class T>
static void forward(const T* u, const T* dt, const T* A, const T* B, const T* C, const T* state, const bool* starts, T* y, T* final,
                    T* kept, Shape s, int64_t threads) {
    over_parts(s, threads, [&](int64_t b, int64_t g, int64_t, const std::vector<Block>& blocks) {
        const int64_t N = s.N, D = s.D(), NL = N * L;
        std::vector<T> all_rates(blocks.size() * NL), all_h(blocks.size() * NL);
        T ut[L], dtt[L], yt[L];
        for (size_t i = 0; i < blocks.size(); i++) {
            blocks[i].load_states(A, &all_rates[i * NL], N);
            blocks[i].load_states(state + b * D * N, &all_h[i * NL], N);
        }
        // spans outside, blocks inside: a token's channels are read together
        for (int64_t span = 0; span < s.spans(); span++) {
            for (size_t i = 0; i < blocks.size(); i++) {
                const Block& block = blocks[i];
                T *h = &all_h[i * NL], *rates = &all_rates[i * NL];
                block.store_states(h, kept + (b * s.spans() + span) * D * N, N);
                for (int64_t t = span * s.span; t < std::min((span + 1) * s.span, s.S); t++) {
                    const int64_t at = b * s.S + t;
                    if (starts && starts[at]) std::fill_n(h, NL, T(0));
                    block.load(u + at * D, ut);
                    block.load(dt + at * D, dtt);
                    const T *Bt = B + (at * s.G + g) * N, *Ct = C + (at * s.G + g) * N;
                    for (int64_t l = 0; l < L; l++) yt[l] = 0, ut[l] *= dtt[l];
                    for (int64_t n = 0; n < N; n++) {
                        T *hn = h + n * L, *an = rates + n * L;
                        const T Bn = Bt[n], Cn = Ct[n];
#pragma omp simd
                        for (int64_t l = 0; l < L; l++) {
                            hn[l] = exp_(dtt[l] * an[l]) * hn[l] + ut[l] * Bn;
                            yt[l] += hn[l] * Cn;
                        }
                    }
                    block.store(yt, y + at * D);
                }
            }
        }
        for (size_t i = 0; i < blocks.size(); i++) blocks[i].store_states(&all_h[i * NL], final + b * D * N, N);
    });
}

// dA comes per row of the batch, dB and dC per part, [parts, B, T, G, N], and start at 0: their sums are the caller's.
template <class T>
static void backward(const T* u, const T* dt, const T* A, const T* B, const T* C, const bool* starts, const T* kept, const T* dy,
                     const T* dfinal, T* du, T* ddt, T* dA, T* dB, T* dC, T* dstate, Shape s, int64_t threads) {
    over_parts(s, threads, [&](int64_t b, int64_t g, int64_t part, const std::vector<Block>& blocks) {
        const int64_t N = s.N, D = s.D(), NL = N * L;
        std::vector<T> all_rates(blocks.size() * NL), all_drates(blocks.size() * NL), all_dh(blocks.size() * NL), h(NL);
        // before[t]: the state that token t of the span multiplies by decay[t]
        std::vector<T> before(s.span * NL), decay(s.span * NL);
        T ut[L], dtt[L], dyt[L], dut[L], ddtt[L], written[L];
        for (size_t i = 0; i < blocks.size(); i++) {
            blocks[i].load_states(A, &all_rates[i * NL], N);
            blocks[i].load_states(dfinal + b * D * N, &all_dh[i * NL], N);
        }
        for (int64_t span = s.spans() - 1; span >= 0; span--) {
            const int64_t first = span * s.span, last = std::min(first + s.span, s.S);
            for (size_t i = 0; i < blocks.size(); i++) {
                const Block& block = blocks[i];
                T *rates = &all_rates[i * NL], *drates = &all_drates[i * NL], *dh = &all_dh[i * NL];
                block.load_states(kept + (b * s.spans() + span) * D * N, h.data(), N);
                for (int64_t t = first; t < last; t++) {
                    const int64_t at = b * s.S + t;
                    if (starts && starts[at]) std::fill(h.begin(), h.end(), T(0));
                    block.load(u + at * D, ut);
                    block.load(dt + at * D, dtt);
                    const T* Bt = B + (at * s.G + g) * N;
                    for (int64_t l = 0; l < L; l++) ut[l] *= dtt[l];
                    for (int64_t n = 0; n < N; n++) {
                        T *hn = &h[n * L], *an = rates + n * L, *bn = &before[(t - first) * NL + n * L], *en = &decay[(t - first) * NL + n * L];
                        const T Bn = Bt[n];
#pragma omp simd
                        for (int64_t l = 0; l < L; l++) {
                            bn[l] = hn[l];
                            en[l] = exp_(dtt[l] * an[l]);
                            hn[l] = en[l] * hn[l] + ut[l] * Bn;
                        }
                    }
                }
                for (int64_t t = last - 1; t >= first; t--) {
                    const int64_t at = b * s.S + t;
                    block.load(u + at * D, ut);
                    block.load(dt + at * D, dtt);
                    block.load(dy + at * D, dyt);
                    const T *Bt = B + (at * s.G + g) * N, *Ct = C + (at * s.G + g) * N;
                    T* dBt = dB + (((part * s.B + b) * s.S + t) * s.G + g) * N;
                    T* dCt = dC + (((part * s.B + b) * s.S + t) * s.G + g) * N;
                    for (int64_t l = 0; l < L; l++) dut[l] = ddtt[l] = 0, written[l] = dtt[l] * ut[l];
                    for (int64_t n = 0; n < N; n++) {
                        T *dhn = dh + n * L, *an = rates + n * L, *dan = drates + n * L;
                        const T *bn = &before[(t - first) * NL + n * L], *en = &decay[(t - first) * NL + n * L];
                        const T Bn = Bt[n], Cn = Ct[n];
                        T toB = 0, toC = 0;
#pragma omp simd reduction(+ : toB, toC)
                        for (int64_t l = 0; l < L; l++) {
                            const T d = dhn[l] + dyt[l] * Cn, faded = en[l] * d, log = faded * bn[l];
                            toC += dyt[l] * (en[l] * bn[l] + written[l] * Bn);
                            toB += written[l] * d;
                            dut[l] += d * Bn;
                            ddtt[l] += log * an[l];
                            dan[l] += log * dtt[l];
                            dhn[l] = faded;
                        }
                        dBt[n] += toB;
                        dCt[n] += toC;
                    }
                    if (starts && starts[at]) std::fill_n(dh, NL, T(0));
                    for (int64_t l = 0; l < L; l++) ddtt[l] += dut[l] * ut[l], dut[l] *= dtt[l];
                    block.store(dut, du + at * D);
                    block.store(ddtt, ddt + at * D);
                }
            }
        }
        for (size_t i = 0; i < blocks.size(); i++) {
            blocks[i].store_states(&all_drates[i * NL], dA + b * D * N, N);
            blocks[i].store_states(&all_dh[i * NL], dstate + b * D * N, N);
        }
    });
}

// What the outputs' gradient alone asks of the state before the first token.
template <class T>
static void adjoint(const T* dy, const T* dt, const T* A, const T* C, const bool* starts, T* dstate, Shape s, int64_t threads) {
    over_parts(s, threads, [&](int64_t b, int64_t g, int64_t, const std::vector<Block>& blocks) {
        const int64_t N = s.N, D = s.D(), NL = N * L;
        std::vector<T> rates(NL), dh(NL);
        T dyt[L], dtt[L];
        for (const Block& block : blocks) {
            block.load_states(A, rates.data(), N);
            std::fill(dh.begin(), dh.end(), T(0));
            for (int64_t t = s.S - 1; t >= 0; t--) {
                const int64_t at = b * s.S + t;
                block.load(dy + at * D, dyt);
                block.load(dt + at * D, dtt);
                const T* Ct = C + (at * s.G + g) * N;
                for (int64_t n = 0; n < N; n++) {
                    T *dhn = &dh[n * L], *an = &rates[n * L];
                    const T Cn = Ct[n];
#pragma omp simd
                    for (int64_t l = 0; l < L; l++) dhn[l] = exp_(dtt[l] * an[l]) * (dhn[l] + dyt[l] * Cn);
                }
                if (starts && starts[at]) std::fill(dh.begin(), dh.end(), T(0));
            }
            block.store_states(dh.data(), dstate + b * D * N, N);
        }
    });
}

#define EXPORT(T)                                                                                                                         \
    extern "C" void forward_##T(const T* u, const T* dt, const T* A, const T* B, const T* C, const T* state, const bool* starts, T* y,    \
                                T* final, T* kept, SIZES) {                                                                               \
        forward<T>(u, dt, A, B, C, state, starts, y, final, kept, Shape SHAPE, threads);                                                        \
    }                                                                                                                                     \
    extern "C" void backward_##T(const T* u, const T* dt, const T* A, const T* B, const T* C, const bool* starts, const T* kept,          \
                                 const T* dy, const T* dfinal, T* du, T* ddt, T* dA, T* dB, T* dC, T* dstate, SIZES) {                    \
        backward<T>(u, dt, A, B, C, starts, kept, dy, dfinal, du, ddt, dA, dB, dC, dstate, Shape SHAPE, threads);                               \
    }                                                                                                                                     \
    extern "C" void adjoint_##T(const T* dy, const T* dt, const T* A, const T* C, const bool* starts, T* dstate, SIZES) {                 \
        adjoint<T>(dy, dt, A, C, starts, dstate, Shape SHAPE, threads);                                                                         \
    }
#define SIZES int64_t batch, int64_t tokens, int64_t groups, int64_t channels, int64_t states, int64_t span, int64_t parts, int64_t threads
#define SHAPE {batch, tokens, groups, channels, states, span, parts}

EXPORT(float)
EXPORT(double)
