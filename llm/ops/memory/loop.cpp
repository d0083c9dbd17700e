// Fast weights of one matrix per head (naive.py) and their gradient, in the runs of tokens that share a chunk: chunk.py's algebra on
// one run at a time, all of whose matrices stay in the cache. Runs end where a chunk or a document does, so nothing is padded.
//
// A task is one head of one row of the batch through all of time. Forward keeps weights and momentum before each run; backward makes
// the rest again. Results do not depend on the number of threads.
//
// Inside a run, with keep = 1 - alpha, u_s = -2 theta_s (k_s W0 - v_s) and W0 the weights that the chunk started from:
//     E[t] = eta_t E[t - 1], E[t, t] = 1        W[t] = keep_t W[t - 1] + E[t]        (an update's part in momentum and weights)
//     y_t = q_t (a_t M + c_t S + sum_{s <= t} W[t, s] k_s^T u_s)
// where a, c are the parts of the incoming weights M and momentum S: a_t = keep_t a_{t-1}, c and e like a column of W and E.
#include "rows.h"

struct Shape {
    int64_t B, S, H, K, V, chunk, runs;  // batch, tokens, heads, widths of keys and values, tokens of a chunk, most runs of a row
    int64_t size() const { return K * V; }
};

struct Run {
    int64_t first, count;
    bool begins, opens;  // a document, a chunk
};

static std::vector<Run> runs_of(const int64_t* position, const Shape& s) {
    std::vector<Run> runs;
    for (int64_t t = 0; t < s.S; t++) {
        const bool opens = position[t] % s.chunk == 0;
        if (t == 0 || opens) runs.push_back({t, 0, position[t] == 0, opens});
        runs.back().count++;
    }
    return runs;
}

template <class T> struct Streams {
    const T *q, *k, *v, *log_keep, *log_momentum, *step;
};

// The parts of updates and of what came in, for one run.
template <class T> struct Mixing {
    int64_t C, padded;
    std::vector<T> W, E, keep, eta, theta, a, c, e;
    explicit Mixing(int64_t chunk)
        : C(chunk), padded(whole_vectors<T>(chunk)), W(padded * padded), E(padded * padded), keep(C), eta(C), theta(C), a(padded), c(padded),
          e(padded) {}

    void fill(const Streams<T>& streams, const Shape& s, int64_t b, int64_t h, const Run& run) {
        std::fill(W.begin(), W.end(), T(0));
        std::fill(E.begin(), E.end(), T(0));
        for (auto* x : {&a, &c, &e}) std::fill(x->begin(), x->end(), T(0));
        for (int64_t t = 0; t < run.count; t++) {
            const int64_t at = (b * s.S + run.first + t) * s.H + h;
            keep[t] = exp_(streams.log_keep[at]), eta[t] = exp_(streams.log_momentum[at]), theta[t] = streams.step[at];
            T *Wt = &W[t * padded], *Et = &E[t * padded];
            if (t)
                for (int64_t p = 0; p < t; p++) {
                    Et[p] = eta[t] * Et[p - padded];
                    Wt[p] = keep[t] * Wt[p - padded] + Et[p];
                }
            Et[t] = Wt[t] = 1;
            a[t] = keep[t] * (t ? a[t - 1] : T(1));
            e[t] = eta[t] * (t ? e[t - 1] : T(1));
            c[t] = keep[t] * (t ? c[t - 1] : T(0)) + e[t];
        }
    }
};

// What one run needs in both directions.
template <class T> struct Buffers {
    int64_t C, Kp, Vp;
    Rows<T> q, k, v, u, error, W0, M, S;
    std::vector<T> keys, products, scores;
    Mixing<T> mixing;
    explicit Buffers(const Shape& s)
        : C(whole_vectors<T>(s.chunk)), Kp(whole_vectors<T>(s.K)), Vp(whole_vectors<T>(s.V)), q(C, s.K), k(C, s.K), v(C, s.V), u(C, s.V),
          error(C, s.V), W0(Kp, s.V), M(Kp, s.V), S(Kp, s.V), keys(Kp * C), products(C * C), scores(C * C), mixing(s.chunk) {}

    void fill(const Streams<T>& streams, const Shape& s, int64_t b, int64_t h, const Run& run) {
        const int64_t at = (b * s.S + run.first) * s.H + h;
        q.read(streams.q + at * s.K, s.H * s.K, run.count, s.K);
        k.read(streams.k + at * s.K, s.H * s.K, run.count, s.K);
        v.read(streams.v + at * s.V, s.H * s.V, run.count, s.V);
        mixing.fill(streams, s, b, h, run);
        gemm(C, Vp, Kp, k.data(), Kp, 1, W0.data(), Vp, error.data(), Vp);
        for (int64_t t = 0; t < C; t++) {
            const T factor = t < run.count ? -2 * mixing.theta[t] : T(0);
            for (int64_t i = 0; i < Vp; i++) {
                error[t][i] -= v[t][i];
                u[t][i] = factor * error[t][i];
            }
        }
        transpose(C, Kp, k.data(), Kp, keys.data(), C);
        gemm(C, C, Kp, q.data(), Kp, 1, keys.data(), C, products.data(), C, LOWER_OUT);
        for (int64_t t = 0; t < C; t++) {
            const int64_t wide = std::min(C, whole_vectors<T>((t / TILE_ROWS + 1) * TILE_ROWS));
            for (int64_t p = 0; p < wide; p++) scores[t * C + p] = products[t * C + p] * mixing.W[t * C + p];
        }
    }
};

template <class Body> static void over_heads(const Shape& s, int64_t threads, Body body) {
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t task = 0; task < s.B * s.H; task++) body(task / s.H, task % s.H);
}

// q, k [B, S, H, K], v, y [B, S, H, V], gates [B, S, H]; initial [H, K, V]; start, weights, momentum, before and after, [B, H, K, V];
// kept [B, H, runs, 2, K, V]
template <class T>
static void forward(Streams<T> streams, const T* initial, const T* start, const T* weights, const T* momentum, const int64_t* position, T* y,
                    T* start_after, T* weights_after, T* momentum_after, T* kept, Shape s, int64_t threads) {
    over_heads(s, threads, [&](int64_t b, int64_t h) {
        Buffers<T> x(s);
        const int64_t C = x.C, Kp = x.Kp, Vp = x.Vp, bh = b * s.H + h;
        Rows<T> Y(C, s.V), scaled(C, s.K);
        x.W0.read_matrix(start + bh * s.size(), s.K);
        x.M.read_matrix(weights + bh * s.size(), s.K);
        x.S.read_matrix(momentum + bh * s.size(), s.K);
        int64_t n = 0;
        for (const Run& run : runs_of(position + b * s.S, s)) {
            if (run.begins) x.M.read_matrix(initial + h * s.size(), s.K), x.S.fill(0);
            if (run.opens) x.W0.values = x.M.values;
            T* before = kept + (bh * s.runs + n++) * 2 * s.size();
            x.M.write_matrix(before, s.K);
            x.S.write_matrix(before + s.size(), s.K);
            x.fill(streams, s, b, h, run);
            const Mixing<T>& mixing = x.mixing;
            const int64_t end = run.count - 1;
            gemm(C, Vp, C, x.scores.data(), C, 1, x.u.data(), Vp, Y.data(), Vp, LOWER);
            scaled.scaled(x.q, mixing.a.data());
            gemm(C, Vp, Kp, scaled.data(), Kp, 1, x.M.data(), Vp, Y.data(), Vp, FULL, true);
            scaled.scaled(x.q, mixing.c.data());
            gemm(C, Vp, Kp, scaled.data(), Kp, 1, x.S.data(), Vp, Y.data(), Vp, FULL, true);
            Y.write(y + ((b * s.S + run.first) * s.H + h) * s.V, s.H * s.V, run.count, s.V);
            for (int64_t i = 0; i < Kp * Vp; i++) {
                T &m = x.M.values[i], &surprise = x.S.values[i];
                m = mixing.a[end] * m + mixing.c[end] * surprise;
                surprise *= mixing.e[end];
            }
            scaled.scaled(x.k, &mixing.W[end * C]);
            gemm(Kp, Vp, C, scaled.data(), 1, Kp, x.u.data(), Vp, x.M.data(), Vp, FULL, true);
            scaled.scaled(x.k, &mixing.E[end * C]);
            gemm(Kp, Vp, C, scaled.data(), 1, Kp, x.u.data(), Vp, x.S.data(), Vp, FULL, true);
        }
        x.W0.write_matrix(start_after + bh * s.size(), s.K);
        x.M.write_matrix(weights_after + bh * s.size(), s.K);
        x.S.write_matrix(momentum_after + bh * s.size(), s.K);
    });
}

// dinitial [B, H, K, V] comes per row of the batch: its sum is the caller's.
template <class T>
static void backward(Streams<T> streams, const T* start, const int64_t* position, const T* kept, const T* dy, const T* dstart_after,
                     const T* dweights_after, const T* dmomentum_after, T* dq, T* dk, T* dv, T* dkeep, T* dmomentum_gate, T* dstep, T* dinitial,
                     T* dstart, T* dweights, T* dmomentum, Shape s, int64_t threads) {
    over_heads(s, threads, [&](int64_t b, int64_t h) {
        Buffers<T> x(s);
        const int64_t C = x.C, Kp = x.Kp, Vp = x.Vp, bh = b * s.H + h;
        Rows<T> dY(C, s.V), dQ(C, s.K), dK(C, s.K), dU(C, s.V), of_keys(C, s.K), of_values(C, s.V), scaled(C, s.K);
        // gradients of weights, momentum, the chunk's first weights and, from the documents that begin here, of the initial ones
        Rows<T> dM(Kp, s.V), dS(Kp, s.V), dW0(Kp, s.V), dM_in(Kp, s.V), dS_in(Kp, s.V), dfirst(Kp, s.V);
        std::vector<T> turned(Vp * std::max(C, Kp)), dscores(C * C), dproducts(C * C), dmix(C), gW(C), gE(C), dE_end(C), da(C), dc(C);
        const Mixing<T>& mixing = x.mixing;
        dM.read_matrix(dweights_after + bh * s.size(), s.K);
        dS.read_matrix(dmomentum_after + bh * s.size(), s.K);
        dW0.read_matrix(dstart_after + bh * s.size(), s.K);
        const std::vector<Run> runs = runs_of(position + b * s.S, s);
        for (int64_t n = int64_t(runs.size()) - 1; n >= 0; n--) {
            const Run& run = runs[n];
            const int64_t at = (b * s.S + run.first) * s.H + h, end = run.count - 1;
            const T* before = kept + (bh * s.runs + n) * 2 * s.size();
            x.M.read_matrix(before, s.K);
            x.S.read_matrix(before + s.size(), s.K);
            x.W0.read_matrix(run.opens ? before : start + bh * s.size(), s.K);
            x.fill(streams, s, b, h, run);
            dY.read(dy + at * s.V, s.H * s.V, run.count, s.V);

            // reads inside the run: dproducts for q and k, dscores for the mixing
            transpose(C, Vp, x.u.data(), Vp, turned.data(), C);
            gemm(C, C, Vp, dY.data(), Vp, 1, turned.data(), C, dscores.data(), C, LOWER_OUT);
            for (int64_t t = 0; t < C; t++) {
                const int64_t wide = std::min(C, whole_vectors<T>((t / TILE_ROWS + 1) * TILE_ROWS));
                for (int64_t p = 0; p < wide; p++) {
                    dproducts[t * C + p] = dscores[t * C + p] * mixing.W[t * C + p];
                    dscores[t * C + p] *= x.products[t * C + p];
                }
            }
            gemm(C, Kp, C, dproducts.data(), C, 1, x.k.data(), Kp, dQ.data(), Kp, LOWER);
            gemm(C, Kp, C, dproducts.data(), 1, C, x.q.data(), Kp, dK.data(), Kp, UPPER);
            gemm(C, Vp, C, x.scores.data(), 1, C, dY.data(), Vp, dU.data(), Vp, UPPER);

            // reads of what came in, and its way through the run
            const auto read_of = [&](Rows<T>& matrix, const std::vector<T>& part, std::vector<T>& dpart, Rows<T>& dmatrix) {
                transpose(Kp, Vp, matrix.data(), Vp, turned.data(), Kp);
                gemm(C, Kp, Vp, dY.data(), Vp, 1, turned.data(), Kp, of_keys.data(), Kp);
                for (int64_t t = 0; t < C; t++) dpart[t] = dot(of_keys[t], x.q[t], Kp);
                dQ.add_scaled(of_keys, part.data());
                scaled.scaled(x.q, part.data());
                gemm(Kp, Vp, C, scaled.data(), 1, Kp, dY.data(), Vp, dmatrix.data(), Vp);
            };
            read_of(x.M, mixing.a, da, dM_in);
            read_of(x.S, mixing.c, dc, dS_in);
            da[end] += dot(dM.data(), x.M.data(), Kp * Vp);
            dc[end] += dot(dM.data(), x.S.data(), Kp * Vp);
            const T de_end = dot(dS.data(), x.S.data(), Kp * Vp);
            for (int64_t i = 0; i < Kp * Vp; i++) {
                dM_in.values[i] += mixing.a[end] * dM.values[i];
                dS_in.values[i] += mixing.c[end] * dM.values[i] + mixing.e[end] * dS.values[i];
            }

            // updates that leave in weights and momentum
            const auto left_in = [&](Rows<T>& dmatrix, const T* part, T* dpart, bool add) {
                gemm(C, Vp, Kp, x.k.data(), Kp, 1, dmatrix.data(), Vp, of_values.data(), Vp);
                for (int64_t t = 0; t < C; t++) dpart[t] = (add ? dpart[t] : T(0)) + dot(of_values[t], x.u[t], Vp);
                dU.add_scaled(of_values, part);
                transpose(Kp, Vp, dmatrix.data(), Vp, turned.data(), Kp);
                of_values.scaled(x.u, part);
                gemm(C, Kp, Vp, of_values.data(), Vp, 1, turned.data(), Kp, dK.data(), Kp, FULL, true);
            };
            left_in(dM, &mixing.W[end * C], &dscores[end * C], true);
            left_in(dS, &mixing.E[end * C], dE_end.data(), false);

            // errors of the chunk's first weights
            for (int64_t t = 0; t < run.count; t++) {
                dstep[at + t * s.H] = -2 * dot(x.error[t], dU[t], Vp);
                for (int64_t i = 0; i < Vp; i++) dU[t][i] *= -2 * mixing.theta[t];
            }
            for (int64_t t = run.count; t < C; t++) std::fill_n(dU[t], Vp, T(0));
            transpose(Kp, Vp, x.W0.data(), Vp, turned.data(), Kp);
            gemm(C, Kp, Vp, dU.data(), Vp, 1, turned.data(), Kp, dK.data(), Kp, FULL, true);
            gemm(Kp, Vp, C, x.k.data(), 1, Kp, dU.data(), Vp, dW0.data(), Vp, FULL, true);
            dU.write(dv + at * s.V, s.H * s.V, run.count, s.V, -1);
            dQ.write(dq + at * s.K, s.H * s.K, run.count, s.K);
            dK.write(dk + at * s.K, s.H * s.K, run.count, s.K);

            // the recurrences of W, E, a, c and e, backwards
            std::fill(gW.begin(), gW.end(), T(0));
            std::fill(gE.begin(), gE.end(), T(0));
            T ga = 0, gc = 0, ge = 0;
            for (int64_t t = end; t >= 0; t--) {
                const bool last = t == end;
                const T keep_next = last ? T(0) : mixing.keep[t + 1], eta_next = last ? T(0) : mixing.eta[t + 1];
                ga = da[t] + keep_next * ga;
                gc = dc[t] + keep_next * gc;
                ge = (last ? de_end : T(0)) + gc + eta_next * ge;
                T to_keep = t ? ga * mixing.a[t - 1] + gc * mixing.c[t - 1] : ga, to_eta = ge * (t ? mixing.e[t - 1] : T(1));
                const T *W_before = &mixing.W[(t ? t - 1 : 0) * C], *E_before = &mixing.E[(t ? t - 1 : 0) * C], *d = &dscores[t * C];
#pragma omp simd reduction(+ : to_keep, to_eta)
                for (int64_t p = 0; p < t; p++) {
                    gW[p] = d[p] + keep_next * gW[p];
                    gE[p] = (last ? dE_end[p] : T(0)) + gW[p] + eta_next * gE[p];
                    to_keep += gW[p] * W_before[p];
                    to_eta += gE[p] * E_before[p];
                }
                dkeep[at + t * s.H] = to_keep * mixing.keep[t];
                dmomentum_gate[at + t * s.H] = to_eta * mixing.eta[t];
            }

            // to the run before
            if (run.opens) {
                for (int64_t i = 0; i < Kp * Vp; i++) dM_in.values[i] += dW0.values[i];
                dW0.fill(0);
            }
            if (run.begins) {
                for (int64_t i = 0; i < Kp * Vp; i++) dfirst.values[i] += dM_in.values[i];
                dM_in.fill(0);
                dS_in.fill(0);
            }
            std::swap(dM.values, dM_in.values);
            std::swap(dS.values, dS_in.values);
        }
        dfirst.write_matrix(dinitial + bh * s.size(), s.K);
        dW0.write_matrix(dstart + bh * s.size(), s.K);
        dM.write_matrix(dweights + bh * s.size(), s.K);
        dS.write_matrix(dmomentum + bh * s.size(), s.K);
    });
}

#define SIZES int64_t batch, int64_t tokens, int64_t heads, int64_t keys, int64_t values, int64_t chunk, int64_t runs, int64_t threads
#define SHAPE                                                                                                                             \
    Shape { batch, tokens, heads, keys, values, chunk, runs }
#define EXPORT(T)                                                                                                                         \
    extern "C" void forward_##T(const T* q, const T* k, const T* v, const T* log_keep, const T* log_momentum, const T* step,              \
                                const T* initial, const T* start, const T* weights, const T* momentum, const int64_t* position, T* y,     \
                                T* start_after, T* weights_after, T* momentum_after, T* kept, SIZES) {                                    \
        forward<T>({q, k, v, log_keep, log_momentum, step}, initial, start, weights, momentum, position, y, start_after, weights_after,   \
                   momentum_after, kept, SHAPE, threads);                                                                                 \
    }                                                                                                                                     \
    extern "C" void backward_##T(const T* q, const T* k, const T* v, const T* log_keep, const T* log_momentum, const T* step,             \
                                 const T* start, const int64_t* position, const T* kept, const T* dy, const T* dstart_after,              \
                                 const T* dweights_after, const T* dmomentum_after, T* dq, T* dk, T* dv, T* dkeep, T* dmomentum_gate,     \
                                 T* dstep, T* dinitial, T* dstart, T* dweights, T* dmomentum, SIZES) {                                    \
        backward<T>({q, k, v, log_keep, log_momentum, step}, start, position, kept, dy, dstart_after, dweights_after, dmomentum_after,    \
                    dq, dk, dv, dkeep, dmomentum_gate, dstep, dinitial, dstart, dweights, dmomentum, SHAPE, threads);                     \
    }

EXPORT(float)
EXPORT(double)
