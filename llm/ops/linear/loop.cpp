// The gated linear recurrence of naive.py with one decay per head, and mLSTM, in chunks of C tokens: chunk.py's algebra on one chunk
// at a time, all of whose matrices stay in the cache.
//
// Heads come in groups that share q and k. Forward keeps the state before each chunk; backward makes the rest again. `In` is the dtype
// of the streams and of the states that are kept, T that of the states that go on, of decays and of sums. Where the processor
// multiplies bfloat16, states and scores are rounded to it as factors. Results do not depend on the number of threads.
#include "rows.h"
#include <numeric>

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

// How far from the diagonal on a product whose factor or result is lower triangular looks at row t.
template <class T> static int64_t seen(int64_t t) { return std::min(C, whole_vectors<T>((t / TILE_ROWS + 1) * TILE_ROWS)); }

// One head's chunk: stabilisers and how much of each token reaches which, for those who read times `scale`.
template <class T> struct Decays {
    T pairs[C][C];  // s to t; 0 above the diagonal as far as the tiles of a product look
    T from_start[C], to_end[C], through, m[C];
    int32_t opened[C];  // the first token of t's document in this chunk; -1: the document came in; C: there is no token t
    bool start[C];

    void fill(const Gates<T>& gates, const Shape& s, int64_t b, int64_t h, int64_t chunk, T scale) {
        const int64_t first = chunk * C, count = std::min(C, s.S - first), held = (b * s.H + h) * (s.chunks() + 1) + chunk;
        const T before = gates.log_input ? gates.m[held] : T(0);
        T sum[C] = {}, since[C] = {}, to[C] = {}, running = before;
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
        const int32_t opened_last = opened[count - 1];
        for (int64_t t = count; t < C; t++) opened[t] = C;
#pragma omp simd
        for (int64_t t = 0; t < C; t++) {
            const T read = scale * exp_(std::min(to[t] + before, T(0))), write = exp_(std::min(end - since[t], T(0)));
            from_start[t] = opened[t] < 0 ? read : T(0);
            to_end[t] = opened[t] == opened_last ? write : T(0);
        }
        for (int32_t t = 0; t < C; t++) {
            const int32_t reached = opened[t], wide = seen<T>(t);
            T* row = pairs[t];
#pragma omp simd
            for (int32_t p = 0; p < wide; p++) {
                const T between = to[t] - since[p], decay = scale * exp_(between > 0 ? T(0) : between);
                row[p] = p >= reached && p <= t ? decay : T(0);
            }
        }
    }

    // The stabiliser after the chunk, kept for the next; the last one is given.
    static T m_after(const Gates<T>& gates, const Shape& s, int64_t held, int64_t chunk, T running) {
        if (chunk + 1 < s.chunks()) gates.m[held + 1] = running;
        return gates.m[held + 1];
    }
};

// A part of a group: heads [first, last), which share q and k.
struct Part {
    int64_t group, index, first, last;
};

// Parts of one row of the batch, with heads [first, last), that go through time side by side: a stream's chunk is then read in one
// piece, not in rows that lie pages apart.
struct Run {
    int64_t b, first, last;
    std::vector<Part> parts;
};

// As many runs as keep the threads busy, and so many that the states of each fit into a core's cache.
template <class Body> static void over_runs(const Shape& s, int64_t state_bytes, int64_t threads, Body body) {
    const int64_t R = s.H / s.G, parts = s.G * s.parts, cache = 1 << 18;
    const int64_t runs = std::min(parts, std::max(threads / std::gcd(s.B, threads), (s.H * state_bytes + cache - 1) / cache));
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t task = 0; task < s.B * runs; task++) {
        std::vector<Part> those;
        for (int64_t p = task % runs * parts / runs; p < (task % runs + 1) * parts / runs; p++) {
            const int64_t g = p / s.parts, index = p % s.parts;
            those.push_back({g, index, g * R + index * R / s.parts, g * R + (index + 1) * R / s.parts});
        }
        body(Run{task / runs, those.front().first, those.back().last, those});
    }
}

// One group's chunk, and what all heads have in common.
template <class T, class In> struct Keys {
    typedef Multiplied<In, T> E;
    Factor<E> q, k;
    Rows<T> products;
    explicit Keys(int64_t K) : q(C, K), k(C, K), products(C, C) {}
    void fill(const In* queries, const In* keys, const Shape& s, int64_t b, int64_t g, int64_t first, int64_t count) {
        const int64_t at = ((b * s.S + first) * s.G + g) * s.K;
        q.read(queries + at, s.G * s.K, count, s.K);
        k.read(keys + at, s.G * s.K, count, s.K);
        gemm(C, C, k.padded, q.left(), k.turned(), products.data(), C, LOWER_OUT);
    }
};

// mLSTM's outputs, divided by the normaliser, which is the last channel and is kept.
template <class T> static void divide(Rows<T>& Y, const Decays<T>& decays, int64_t count, int64_t V, T* norm, int64_t stride) {
    for (int64_t t = 0; t < count; t++) {
        const T n = Y[t][V], divisor = std::max(std::fabs(n), exp_(-decays.m[t]));
        norm[t * stride] = n;
        for (int64_t i = 0; i < V; i++) Y[t][i] /= divisor;
    }
}

// Gradients of divided outputs y become those of what was divided.
template <class T, class In>
static void divide_back(Rows<T>& dY, const Decays<T>& decays, int64_t count, int64_t V, const T* norm, const In* y, int64_t stride) {
    for (int64_t t = 0; t < count; t++) {
        T* d = dY[t];
        const T n = norm[t * stride], least = exp_(-decays.m[t]), divisor = std::max(std::fabs(n), least);
        for (int64_t i = 0; i < V; i++) d[i] /= divisor;
        // of the divided gradients, so that it takes back just what they give where all outputs grow alike
        d[V] = std::fabs(n) > least ? (n > 0 ? -1 : 1) * dot(d, y + t * stride * V, V) : T(0);
    }
}

// One head's values in a chunk, with a channel of ones where there is a normaliser.
template <class E, class In>
static void read_values(Factor<E>& values, const In* v, const Shape& s, int64_t count) {
    values.read(v, s.H * s.V, count, s.V);
    if (values.width > s.V)
        for (int64_t t = 0; t < count; t++) values[t][s.V] = as<E>(typename Units<E>::sum(1));
}

// q, k [B, S, G, K]; v, y [B, S, H, V]; state, final [B, H, K, V'], kept [B, H, chunks, K, V'] with V' = V + 1 under mLSTM, and norm
// [B, S, H] its normaliser, y the outputs divided by it.
template <class T, class In>
static void forward(const In* q, const In* k, const In* v, Gates<T> gates, const T* state, In* y, T* final, In* kept, T* norm, T scale,
                    Shape s, int64_t threads) {
    typedef Multiplied<In, T> E;
    const int64_t K = s.K, V = s.V, W = V + (gates.log_input ? 1 : 0), Kp = whole_vectors<E>(K), Vp = whole_vectors<E>(W);
    over_runs(s, K * W * sizeof(T), threads, [&](const Run& run) {
        Keys<T, In> keys(K);
        Factor<E> values(C, W), written(C, W), scores(C, C), incoming(Kp, W);
        Rows<T> Y(C, W, Vp);
        std::vector<Rows<T>> states(run.last - run.first, Rows<T>(Kp, W, Vp));
        Decays<T> decays;
        const auto chunk = [&](int64_t h, int64_t n, int64_t count, View<E> k_stacked) {
            const int64_t bh = run.b * s.H + h, at = (run.b * s.S + n * C) * s.H + h;
            Rows<T>& S = states[h - run.first];
            decays.fill(gates, s, run.b, h, n, scale);
            for (int64_t t = 0; t < C; t++) {
                const T *products = keys.products[t], *pairs = decays.pairs[t];
                E* to = scores[t];
#pragma omp simd
                for (int64_t p = 0; p < seen<T>(t); p++) to[p] = as<E>(products[p] * pairs[p]);
            }
            read_values(values, v + at * V, s, count);
            incoming.assign(S);
            incoming.write_matrix(kept + (bh * s.chunks() + n) * K * W, K);
            gemm(C, Vp, Kp, keys.q.left(), incoming.stacked(), Y.data(), Vp, FULL, 0, decays.from_start);
            gemm(C, Vp, C, scores.left(), values.stacked(), Y.data(), Vp, LOWER, 1);
            written.scaled(values, decays.to_end);
            gemm(Kp, Vp, C, k_stacked.transposed(), written.stacked(), S.data(), Vp, FULL, decays.through);
            if (norm) divide(Y, decays, count, V, norm + at, s.H);
            Y.write(y + at * V, s.H * V, count, V);
        };
        for (int64_t h = run.first; h < run.last; h++) states[h - run.first].read_matrix(state + (run.b * s.H + h) * K * W, K);
        for (int64_t n = 0; n < s.chunks(); n++)
            for (const Part& part : run.parts) {
                const int64_t count = std::min(C, s.S - n * C);
                keys.fill(q, k, s, run.b, part.group, n * C, count);
                const View<E> k_stacked = keys.k.stacked();
                for (int64_t h = part.first; h < part.last; h++) chunk(h, n, count, k_stacked);
            }
        for (int64_t h = run.first; h < run.last; h++) states[h - run.first].write_matrix(final + (run.b * s.H + h) * K * W, K);
    });
}

// Inside a chunk, from the gradients of scores: scores, and the gradients of products, added to `dproducts`; rows and columns of
// `crossing`, the gradients of the log decays between two tokens.
template <class T, class E>
static void inside_back(const Rows<T>& dscores, const Rows<T>& products, const Decays<T>& decays, Rows<T>& dproducts, Factor<E>& scores,
                        T* ending, T* entering) {
    std::fill_n(entering, C, T(0));
    for (int64_t t = 0; t < C; t++) {
        const T *d = dscores[t], *product = products[t], *pairs = decays.pairs[t];
        T row = 0, *sum = dproducts[t];
        E* to = scores[t];
#pragma omp simd reduction(+ : row)
        for (int64_t p = 0; p < seen<T>(t); p++) {
            const T score = product[p] * pairs[p], crossing = d[p] * score;
            row += crossing;
            entering[p] += crossing;
            sum[p] += d[p] * pairs[p];
            to[p] = as<E>(score);
        }
        ending[t] = row;
    }
}

// A log decay scales every path that crosses its token. ending: of the paths inside the chunk and from the incoming state, the
// gradients of those that end at a token less those that begin there; leaving: from a token to the outgoing state; passing: from
// state to state. ddecay: of the first token, others lie `stride` apart.
template <class T>
static void gradient_of_decays(const Decays<T>& decays, int64_t count, const T* ending, const T* leaving, T passing, T* ddecay,
                               int64_t stride) {
    T later = 0, earlier = 0, total[C];
    for (int64_t t = count - 1; t >= 0; t--) {
        later += ending[t];
        total[t] = later + (decays.opened[t] < 0 ? passing : T(0));
        if (decays.start[t]) later = total[t] = 0;
    }
    for (int64_t t = 0; t < count; t++) {
        if (decays.start[t]) earlier = 0;
        ddecay[t * stride] = decays.start[t] ? T(0) : total[t] + earlier;
        earlier += leaving[t];
    }
}

// dq and dk [parts, B, S, G, K] come per part, of which the caller takes the sum; where there is one part they are `In`, else T. ddecay
// and dinput [B, S, H].
template <class T, class In>
static void backward(const In* q, const In* k, const In* v, Gates<T> gates, const In* y, const In* kept, const T* norm, const In* dy,
                     const T* dfinal, void* dq, void* dk, In* dv, T* ddecay, T* dinput, T* dstate, T scale, Shape s, int64_t threads) {
    typedef Multiplied<In, T> E;
    const int64_t K = s.K, V = s.V, W = V + (gates.log_input ? 1 : 0), Kp = whole_vectors<E>(K), Vp = whole_vectors<E>(W);
    over_runs(s, K * W * sizeof(T), threads, [&](const Run& run) {
        Keys<T, In> keys(K);
        Factor<E> values(C, W), dY(C, W), read(C, W), scores(C, C), dproducts(C, C), incoming(Kp, W), doutgoing(Kp, W);
        Rows<T> dscores(C, C), sum(C, C), dQ(C, K, Kp), dK(C, K, Kp), dV(C, W, Vp), from_state(C, K, Kp), to_state(C, W, Vp);
        std::vector<Rows<T>> dstates(run.last - run.first, Rows<T>(Kp, W, Vp));
        Decays<T> decays;
        const auto chunk = [&](int64_t h, int64_t n, int64_t count, View<E> q_stacked) {
            const int64_t bh = run.b * s.H + h, at = (run.b * s.S + n * C) * s.H + h;
            Rows<T>& dS = dstates[h - run.first];
            T ending[C], entering[C], leaving[C];
            decays.fill(gates, s, run.b, h, n, scale);
            incoming.read_matrix(kept + (bh * s.chunks() + n) * K * W, K);
            doutgoing.assign(dS);
            read_values(values, v + at * V, s, count);
            dY.read(dy + at * V, s.H * V, count, V);
            if (norm) {
                to_state.read(dy + at * V, s.H * V, count, V);
                divide_back(to_state, decays, count, V, norm + at, y + at * V, s.H);
                dY.assign(to_state);
            }
            gemm(C, C, Vp, dY.left(), values.turned(), dscores.data(), C, LOWER_OUT);
            inside_back(dscores, keys.products, decays, sum, scores, ending, entering);
            gemm(C, Vp, C, scores.stacked().transposed(), dY.stacked(), dV.data(), Vp, UPPER);

            // from the incoming state, and into the outgoing one
            gemm(C, Kp, Vp, dY.left(), incoming.turned(), from_state.data(), Kp, FULL, 0, decays.from_start);
            gemm(C, Vp, Kp, keys.k.left(), doutgoing.stacked(), to_state.data(), Vp, FULL, 0, decays.to_end);
            for (int64_t t = 0; t < C; t++) {
                ending[t] += dot(from_state[t], keys.q[t], Kp) - entering[t];
                leaving[t] = dot(to_state[t], values[t], Vp);
            }
            dQ.add(from_state);
            dV.add(to_state);
            gemm(C, Kp, Vp, values.left(), doutgoing.turned(), dK.data(), Kp, FULL, 1, decays.to_end);
            const T passing = decays.through * dot(dS.data(), incoming.data(), Kp * Vp);
            read.scaled(dY, decays.from_start);
            gemm(Kp, Vp, C, q_stacked.transposed(), read.stacked(), dS.data(), Vp, FULL, decays.through);
            dV.write(dv + at * V, s.H * V, count, V);
            gradient_of_decays(decays, count, ending, leaving, passing, ddecay + at, s.H);
            if (dinput)
                for (int64_t t = 0; t < count; t++) dinput[at + t * s.H] = entering[t] + leaving[t];
        };
        for (int64_t h = run.first; h < run.last; h++) dstates[h - run.first].read_matrix(dfinal + (run.b * s.H + h) * K * W, K);
        for (int64_t n = s.chunks() - 1; n >= 0; n--)
            for (const Part& part : run.parts) {
                const int64_t count = std::min(C, s.S - n * C);
                const int64_t to = (((part.index * s.B + run.b) * s.S + n * C) * s.G + part.group) * K;
                keys.fill(q, k, s, run.b, part.group, n * C, count);
                const View<E> q_stacked = keys.q.stacked();
                for (Rows<T>* zero : {&sum, &dQ, &dK}) zero->fill(0);
                for (int64_t h = part.first; h < part.last; h++) chunk(h, n, count, q_stacked);
                dproducts.assign(sum);
                gemm(C, Kp, C, dproducts.left(), keys.k.stacked(), dQ.data(), Kp, LOWER, 1);
                gemm(C, Kp, C, dproducts.stacked().transposed(), q_stacked, dK.data(), Kp, UPPER, 1);
                const auto write = [&](auto* dq, auto* dk) {
                    dQ.write(dq + to, s.G * K, count, K);
                    dK.write(dk + to, s.G * K, count, K);
                };
                s.parts == 1 ? write((In*)dq, (In*)dk) : write((T*)dq, (T*)dk);
            }
        for (int64_t h = run.first; h < run.last; h++) dstates[h - run.first].write_matrix(dstate + (run.b * s.H + h) * K * W, K);
    });
}

#define SIZES                                                                                                                             \
    int64_t batch, int64_t tokens, int64_t groups, int64_t heads, int64_t keys, int64_t values, int64_t parts, int64_t decay_rows,        \
        int64_t threads
#define SHAPE                                                                                                                             \
    Shape { batch, tokens, groups, heads, keys, values, parts, decay_rows }
#define EXPORT(In, T)                                                                                                                     \
    extern "C" void forward_##In(const In* q, const In* k, const In* v, const T* log_decay, const T* log_input, T* m, const bool* starts, \
                                 const T* state, In* y, T* final, In* kept, T* norm, double scale, SIZES) {                             \
        forward<T, In>(q, k, v, {log_decay, log_input, m, starts}, state, y, final, kept, norm, T(scale), SHAPE, threads);                  \
    }                                                                                                                                     \
    extern "C" void backward_##In(const In* q, const In* k, const In* v, const T* log_decay, const T* log_input, T* m,                    \
                                  const bool* starts, const In* y, const In* kept, const T* norm, const In* dy, const T* dfinal,          \
                                  void* dq, void* dk, In* dv, T* ddecay, T* dinput, T* dstate, double scale, SIZES) {                           \
        backward<T, In>(q, k, v, {log_decay, log_input, m, starts}, y, kept, norm, dy, dfinal, dq, dk, dv, ddecay, dinput, dstate,        \
                        T(scale), SHAPE, threads);                                                                                        \
    }

EXPORT(float, float)
EXPORT(double, double)
EXPORT(bfloat16, float)
