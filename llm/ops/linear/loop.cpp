// The gated linear recurrence of naive.py with one decay per head, and mLSTM, in chunks of C tokens: chunk.py's algebra on one chunk
// at a time, all of whose matrices stay in the cache.
//
// Heads come in groups that share q and k. A task is one row of the batch, one group and one of its parts, a run of heads, through all
// of time. Forward keeps the state before each chunk; backward makes the rest again. `In` is the dtype of the streams, T that of
// states, decays and sums. Results do not depend on the number of threads.
#include "gemm.h"

static constexpr int64_t C = 64;

struct Shape {
    int64_t B, S, G, H, K, V;  // batch, tokens, groups, heads, widths of keys and values
    int64_t parts, decay_rows;  // parts of a group; 1 where all rows share the log decays, else B
    int64_t chunks() const { return (S + C - 1) / C; }
};

// Gates, and where documents start; null where there are none. log_input makes it mLSTM: values have one more channel, 1, for the
// normaliser, and states are held times exp(-m); `m` [B, H, chunks + 1] is that stabiliser before each chunk and after the last.
template <class T> struct Gates {
    const T *log_decay, *log_input;
    T* m;
    const bool* starts;
};

// One head's chunk: stabilisers and how much of each token reaches which.
template <class T> struct Decays {
    T pairs[C][C];  // s to t; 0 above the diagonal as far as the tiles of a product look
    T from_start[C], to_end[C], through, m[C];
    int64_t opened[C];  // the first token of t's document in this chunk; -1: the document came in
    bool start[C];

    void fill(const Gates<T>& gates, const Shape& s, int64_t b, int64_t h, int64_t chunk) {
        const int64_t first = chunk * C, count = std::min(C, s.S - first), held = (b * s.H + h) * (s.chunks() + 1) + chunk;
        const T before = gates.log_input ? gates.m[held] : T(0);
        T sum[C] = {}, since[C], to[C], running = before;
        for (int64_t t = 0; t < count; t++) {
            const int64_t at = b * s.S + first + t;
            start[t] = gates.starts && gates.starts[at];
            opened[t] = start[t] ? t : (t ? opened[t - 1] : -1);
            const T g = gates.log_decay[((s.decay_rows == 1 ? 0 : b) * s.S + first + t) * s.H + h];
            sum[t] = start[t] ? T(0) : (t ? sum[t - 1] : T(0)) + g;
            since[t] = to[t] = sum[t];
            if (gates.log_input) {
                const T input = gates.log_input[at * s.H + h], kept = g + running;
                running = start[t] || input > kept ? input : kept;
                since[t] -= input;
                to[t] -= running;
            }
            m[t] = running;
        }
        const T end = sum[count - 1] - (gates.log_input ? m_after(gates, s, held, chunk, running) : T(0));
        through = opened[count - 1] < 0 ? exp_(std::min(end + before, T(0))) : T(0);
        for (int64_t t = 0; t < C; t++) {
            const bool real = t < count;
            from_start[t] = real && opened[t] < 0 ? exp_(std::min(to[t] + before, T(0))) : T(0);
            to_end[t] = real && opened[t] == opened[count - 1] ? exp_(std::min(end - since[t], T(0))) : T(0);
            const int64_t wide = std::min(C, whole_vectors<T>((t / TILE_ROWS + 1) * TILE_ROWS));
            std::fill_n(pairs[t], wide, T(0));
            if (!real) continue;
#pragma omp simd
            for (int64_t p = std::max(opened[t], int64_t(0)); p <= t; p++) {
                T between = to[t] - since[p];
                pairs[t][p] = exp_(between > 0 ? T(0) : between);
            }
        }
    }

    // The stabiliser after the chunk, kept for the next; the last one is given.
    static T m_after(const Gates<T>& gates, const Shape& s, int64_t held, int64_t chunk, T running) {
        if (chunk + 1 < s.chunks()) gates.m[held + 1] = running;
        return gates.m[held + 1];
    }
};

// body(row of the batch, group, part, first head, heads)
template <class Body> static void over_parts(const Shape& s, int64_t threads, Body body) {
    const int64_t R = s.H / s.G;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t task = 0; task < s.B * s.G * s.parts; task++) {
        const int64_t part = task % s.parts, g = task / s.parts % s.G, b = task / s.parts / s.G;
        const int64_t first = part * R / s.parts, last = (part + 1) * R / s.parts;
        body(b, g, part, g * R + first, last - first);
    }
}

// scores = q k^T times decays, as far as a later product looks
template <class T> static void by_decays(const T* products, const Decays<T>& decays, T* scores) {
    for (int64_t t = 0; t < C; t++) {
        const int64_t wide = std::min(C, whole_vectors<T>((t / TILE_ROWS + 1) * TILE_ROWS));
        for (int64_t p = 0; p < wide; p++) scores[t * C + p] = products[t * C + p] * decays.pairs[t][p];
    }
}

// q, k [B, S, G, K]; v, y [B, S, H, V]; state, final [B, H, K, V'], kept [B, H, chunks, K, V'] with V' = V + 1 under mLSTM, and norm
// [B, S, H] its normaliser, y the outputs divided by it.
template <class T, class In>
static void forward(const In* q, const In* k, const In* v, Gates<T> gates, const T* state, In* y, T* final, T* kept, T* norm, T scale,
                    Shape s, int64_t threads) {
    const int64_t K = s.K, V = s.V, W = V + (gates.log_input ? 1 : 0);
    over_parts(s, threads, [&](int64_t b, int64_t g, int64_t, int64_t first_head, int64_t heads) {
        Rows<T> Q(C, K), Kc(C, K), Vc(C, W), Y(C, W), scaled(C, K), S(heads * whole_vectors<T>(K), W);
        const int64_t Kp = Q.padded, Vp = Vc.padded;
        std::vector<T> keys(Kp * C), products(C * C), scores(C * C);
        Decays<T> decays;
        for (int64_t r = 0; r < heads; r++) {
            const int64_t bh = b * s.H + first_head + r;
            for (int64_t i = 0; i < K; i++) std::copy_n(state + (bh * K + i) * W, W, S[r * Kp + i]);
        }
        for (int64_t n = 0; n < s.chunks(); n++) {
            const int64_t first = n * C, count = std::min(C, s.S - first), at = b * s.S + first;
            Q.read(q + (at * s.G + g) * K, s.G * K, count, K, scale);
            Kc.read(k + (at * s.G + g) * K, s.G * K, count, K);
            transpose(C, Kp, Kc.data(), Kp, keys.data(), C);
            gemm(C, C, Kp, Q.data(), Kp, 1, keys.data(), C, products.data(), C, LOWER_OUT);
            for (int64_t r = 0; r < heads; r++) {
                const int64_t h = first_head + r;
                T* Sr = S[r * Kp];
                decays.fill(gates, s, b, h, n);
                by_decays(products.data(), decays, scores.data());
                for (int64_t i = 0; i < K; i++) std::copy_n(Sr + i * Vp, W, kept + (((b * s.H + h) * s.chunks() + n) * K + i) * W);
                Vc.read(v + (at * s.H + h) * V, s.H * V, count, V);
                if (W > V)
                    for (int64_t t = 0; t < count; t++) Vc[t][V] = 1;
                gemm(C, Vp, C, scores.data(), C, 1, Vc.data(), Vp, Y.data(), Vp, LOWER);
                scaled.scaled(Q, decays.from_start);
                gemm(C, Vp, Kp, scaled.data(), Kp, 1, Sr, Vp, Y.data(), Vp, FULL, true);
                scaled.scaled(Kc, decays.to_end);
                for (int64_t i = 0; i < Kp * Vp; i++) Sr[i] *= decays.through;
                gemm(Kp, Vp, C, scaled.data(), 1, Kp, Vc.data(), Vp, Sr, Vp, FULL, true);
                if (W > V)
                    for (int64_t t = 0; t < count; t++) {
                        const T n = Y[t][V], divisor = std::max(std::fabs(n), exp_(-decays.m[t]));
                        norm[(at + t) * s.H + h] = n;
                        for (int64_t i = 0; i < V; i++) Y[t][i] /= divisor;
                    }
                Y.write(y + (at * s.H + h) * V, s.H * V, count, V);
            }
        }
        for (int64_t r = 0; r < heads; r++)
            for (int64_t i = 0; i < K; i++) std::copy_n(S[r * Kp + i], W, final + ((b * s.H + first_head + r) * K + i) * W);
    });
}

// dq and dk come per part, [parts, B, S, G, K]: their sum is the caller's. ddecay and dinput [B, S, H].
template <class T, class In>
static void backward(const In* q, const In* k, const In* v, Gates<T> gates, const In* y, const T* kept, const T* norm, const In* dy,
                     const T* dfinal, T* dq, T* dk, In* dv, T* ddecay, T* dinput, T* dstate, T scale, Shape s, int64_t threads) {
    const int64_t K = s.K, V = s.V, W = V + (gates.log_input ? 1 : 0);
    over_parts(s, threads, [&](int64_t b, int64_t g, int64_t part, int64_t first_head, int64_t heads) {
        const int64_t Kp = whole_vectors<T>(K), Vp = whole_vectors<T>(W);
        Rows<T> Q(C, K), Kc(C, K), Vc(C, W), Yc(C, W), dY(C, W), dQ(C, K), dK(C, K), dV(C, W), from_state(C, K), wide(C, W);
        Rows<T> S(Kp, W), dS(heads * Kp, W);
        std::vector<T> keys(Kp * C), turned(Vp * std::max(C, Kp)), products(C * C), scores(C * C), dproducts(C * C), dscores(C * C);
        Decays<T> decays;
        for (int64_t r = 0; r < heads; r++)
            for (int64_t i = 0; i < K; i++) std::copy_n(dfinal + ((b * s.H + first_head + r) * K + i) * W, W, dS[r * Kp + i]);
        for (int64_t n = s.chunks() - 1; n >= 0; n--) {
            const int64_t first = n * C, count = std::min(C, s.S - first), at = b * s.S + first;
            Q.read(q + (at * s.G + g) * K, s.G * K, count, K, scale);
            Kc.read(k + (at * s.G + g) * K, s.G * K, count, K);
            transpose(C, Kp, Kc.data(), Kp, keys.data(), C);
            gemm(C, C, Kp, Q.data(), Kp, 1, keys.data(), C, products.data(), C, LOWER_OUT);
            std::fill(dQ.values.begin(), dQ.values.end(), T(0));
            std::fill(dK.values.begin(), dK.values.end(), T(0));
            std::fill(dscores.begin(), dscores.end(), T(0));
            for (int64_t r = 0; r < heads; r++) {
                const int64_t h = first_head + r;
                T* dSr = dS[r * Kp];
                decays.fill(gates, s, b, h, n);
                by_decays(products.data(), decays, scores.data());
                S.read_matrix(kept + ((b * s.H + h) * s.chunks() + n) * K * W, K);
                Vc.read(v + (at * s.H + h) * V, s.H * V, count, V);
                dY.read(dy + (at * s.H + h) * V, s.H * V, count, V);
                if (W > V) {
                    Yc.read(y + (at * s.H + h) * V, s.H * V, count, V);
                    for (int64_t t = 0; t < count; t++) {
                        const T n = norm[(at + t) * s.H + h], least = exp_(-decays.m[t]), divisor = std::max(std::fabs(n), least);
                        Vc[t][V] = 1;
                        for (int64_t i = 0; i < V; i++) dY[t][i] /= divisor;
                        // of the divided gradients, so that it takes back just what they give where all outputs grow alike
                        dY[t][V] = std::fabs(n) > least ? (n > 0 ? -1 : 1) * dot(dY[t], Yc[t], V) : T(0);
                    }
                }
                transpose(C, Vp, Vc.data(), Vp, turned.data(), C);
                gemm(C, C, Vp, dY.data(), Vp, 1, turned.data(), C, dproducts.data(), C, LOWER_OUT);

                // inside the chunk; rows and columns of `crossing`, the gradients of the log decays between two tokens
                T ending[C] = {}, entering[C] = {};
                for (int64_t t = 0; t < C; t++) {
                    const int64_t near = std::min(C, whole_vectors<T>((t / TILE_ROWS + 1) * TILE_ROWS));
                    T row = 0;
#pragma omp simd reduction(+ : row)
                    for (int64_t p = 0; p < near; p++) {
                        const T crossing = dproducts[t * C + p] * scores[t * C + p];
                        row += crossing;
                        entering[p] += crossing;
                        dscores[t * C + p] += dproducts[t * C + p] * decays.pairs[t][p];
                    }
                    ending[t] = row;
                }
                gemm(C, Vp, C, scores.data(), 1, C, dY.data(), Vp, dV.data(), Vp, UPPER);

                // from the incoming state, and into the outgoing one
                wide.scaled(dY, decays.from_start);
                transpose(Kp, Vp, S.data(), Vp, turned.data(), Kp);
                gemm(C, Kp, Vp, wide.data(), Vp, 1, turned.data(), Kp, from_state.data(), Kp);
                for (int64_t t = 0; t < C; t++) {
                    ending[t] += dot(from_state[t], Q[t], Kp) - entering[t];
                    for (int64_t i = 0; i < Kp; i++) dQ[t][i] += from_state[t][i];
                }
                const T passing = decays.through * dot(S.data(), dSr, Kp * Vp);
                gemm(C, Vp, Kp, Kc.data(), Kp, 1, dSr, Vp, Yc.data(), Vp);
                dV.add_scaled(Yc, decays.to_end);
                T written[C];
                for (int64_t t = 0; t < C; t++) written[t] = decays.to_end[t] * dot(Yc[t], Vc[t], Vp);
                Yc.scaled(Vc, decays.to_end);
                transpose(Kp, Vp, dSr, Vp, turned.data(), Kp);
                gemm(C, Kp, Vp, Yc.data(), Vp, 1, turned.data(), Kp, dK.data(), Kp, FULL, true);
                for (int64_t i = 0; i < Kp * Vp; i++) dSr[i] *= decays.through;
                gemm(Kp, Vp, C, Q.data(), 1, Kp, wide.data(), Vp, dSr, Vp, FULL, true);
                dV.write(dv + (at * s.H + h) * V, s.H * V, count, V);

                // a log decay scales every path that crosses its token
                T later = 0, earlier = 0;
                T total[C];
                for (int64_t t = count - 1; t >= 0; t--) {
                    later += ending[t];
                    total[t] = later + (decays.opened[t] < 0 ? passing : T(0));
                    if (decays.start[t]) later = total[t] = 0;
                }
                for (int64_t t = 0; t < count; t++) {
                    if (decays.start[t]) earlier = 0;
                    const int64_t to = (at + t) * s.H + h;
                    ddecay[to] = decays.start[t] ? T(0) : total[t] + earlier;
                    if (gates.log_input) dinput[to] = entering[t] + written[t];
                    earlier += written[t];
                }
            }
            gemm(C, Kp, C, dscores.data(), C, 1, Kc.data(), Kp, dQ.data(), Kp, LOWER, true);
            gemm(C, Kp, C, dscores.data(), 1, C, Q.data(), Kp, dK.data(), Kp, UPPER, true);
            const int64_t to = (((part * s.B + b) * s.S + first) * s.G + g) * K;
            dQ.write(dq + to, s.G * K, count, K, scale);
            dK.write(dk + to, s.G * K, count, K);
        }
        for (int64_t r = 0; r < heads; r++)
            for (int64_t i = 0; i < K; i++) std::copy_n(dS[r * Kp + i], W, dstate + ((b * s.H + first_head + r) * K + i) * W);
    });
}

#define SIZES                                                                                                                             \
    int64_t batch, int64_t tokens, int64_t groups, int64_t heads, int64_t keys, int64_t values, int64_t parts, int64_t decay_rows,        \
        int64_t threads
#define SHAPE                                                                                                                             \
    Shape { batch, tokens, groups, heads, keys, values, parts, decay_rows }
#define EXPORT(In, T)                                                                                                                     \
    extern "C" void forward_##In(const In* q, const In* k, const In* v, const T* log_decay, const T* log_input, T* m, const bool* starts, \
                                 const T* state, In* y, T* final, T* kept, T* norm, double scale, SIZES) {                              \
        forward<T, In>(q, k, v, {log_decay, log_input, m, starts}, state, y, final, kept, norm, T(scale), SHAPE, threads);                  \
    }                                                                                                                                     \
    extern "C" void backward_##In(const In* q, const In* k, const In* v, const T* log_decay, const T* log_input, T* m,                    \
                                  const bool* starts, const In* y, const T* kept, const T* norm, const In* dy, const T* dfinal,           \
                                  T* dq, T* dk, In* dv, T* ddecay, T* dinput, T* dstate, double scale, SIZES) {                           \
        backward<T, In>(q, k, v, {log_decay, log_input, m, starts}, y, kept, norm, dy, dfinal, dq, dk, dv, ddecay, dinput, dstate,        \
                        T(scale), SHAPE, threads);                                                                                        \
    }

EXPORT(float, float)
EXPORT(double, double)
EXPORT(bfloat16, float)
