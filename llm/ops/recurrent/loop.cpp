// The recurrence of naive.py with the cells of cells.py, and its gradient, for one dtype.
//
// Heads never meet, so a task is one head with one row of the batch, or with ROWS of them that share the reading of its matrix, through
// all of time. The matrix is copied once into tiles whose columns are vectors. Results do not depend on the number of threads.
#include "gemm.h"
#include <algorithm>
#include <vector>

static constexpr int64_t ROWS = TILE_ROWS / 2;

// A matrix [in, out], in tiles of four vectors of outputs: [tile][in][4 vectors].
template <class T> struct Tiles {
    using Vec = typename Vector<T>::type;
    static constexpr int64_t width = 4 * Vector<T>::size;
    int64_t in, out;
    std::vector<T> values;

    template <class At> Tiles(int64_t in, int64_t out, At at) : in(in), out(out), values((out + width - 1) / width * in * width, T(0)) {
        for (int64_t o = 0; o < out; o++)
            for (int64_t i = 0; i < in; i++) values[(o / width * in + i) * width + o % width] = at(i, o);
    }

    // y[row] += x[row] M for `rows` rows that lie `in` and `out` apart
    void add_product(int64_t rows, const T* x, T* y) const {
        int64_t row = 0;
        for (; row + ROWS <= rows; row += ROWS) add<ROWS>(x + row * in, y + row * out);
        for (; row < rows; row++) add<1>(x + row * in, y + row * out);
    }

    template <int64_t R> void add(const T* x, T* y) const {
        for (int64_t first = 0; first < out; first += width) {
            Vec sum[R][4] = {};
            const T* column = &values[first * in];
            for (int64_t i = 0; i < in; i++, column += width) {
                const Vec* m = reinterpret_cast<const Vec*>(column);
                for (int64_t r = 0; r < R; r++)
                    for (int64_t j = 0; j < 4; j++) sum[r][j] += x[r * in + i] * m[j];
            }
            for (int64_t r = 0; r < R; r++) {
                const T* s = reinterpret_cast<const T*>(sum[r]);
                for (int64_t o = 0; o < std::min(width, out - first); o++) y[r * out + first + o] += s[o];
            }
        }
    }
};

// Cells: x, r and their gradients are [gates][V], a state is [states][V], h first. `back` leaves in `ds` the gradient of the state
// before, without what flows through r into h; where x and r enter as a sum alone it writes their common gradient to dr.
struct LSTM {
    static constexpr int64_t gates = 4, states = 2;
    template <class T> static void step(int64_t V, const T* x, const T* r, T* s) {
#pragma omp simd
        for (int64_t v = 0; v < V; v++) {
            T i = sigmoid(x[v] + r[v]), f = sigmoid(x[V + v] + r[V + v]);
            T g = tanh_(x[2 * V + v] + r[2 * V + v]), o = sigmoid(x[3 * V + v] + r[3 * V + v]);
            T c = f * s[V + v] + i * g;
            s[V + v] = c;
            s[v] = o * tanh_(c);
        }
    }
    template <class T> static void back(int64_t V, const T* x, const T* r, const T* s, T* ds, T*, T* dr) {
#pragma omp simd
        for (int64_t v = 0; v < V; v++) {
            T i = sigmoid(x[v] + r[v]), f = sigmoid(x[V + v] + r[V + v]);
            T g = tanh_(x[2 * V + v] + r[2 * V + v]), o = sigmoid(x[3 * V + v] + r[3 * V + v]);
            T before = s[V + v], tanh_c = tanh_(f * before + i * g), dh = ds[v];
            T dc = ds[V + v] + dh * o * (1 - tanh_c * tanh_c);
            dr[v] = dc * g * i * (1 - i);
            dr[V + v] = dc * before * f * (1 - f);
            dr[2 * V + v] = dc * i * (1 - g * g);
            dr[3 * V + v] = dh * tanh_c * o * (1 - o);
            ds[v] = 0;
            ds[V + v] = dc * f;
        }
    }
};

struct GRU {
    static constexpr int64_t gates = 3, states = 1;
    template <class T> static void step(int64_t V, const T* x, const T* r, T* s) {
#pragma omp simd
        for (int64_t v = 0; v < V; v++) {
            T reset = sigmoid(x[v] + r[v]), z = sigmoid(x[V + v] + r[V + v]);
            T n = tanh_(x[2 * V + v] + reset * r[2 * V + v]);
            s[v] = n + z * (s[v] - n);
        }
    }
    template <class T> static void back(int64_t V, const T* x, const T* r, const T* s, T* ds, T* dx, T* dr) {
#pragma omp simd
        for (int64_t v = 0; v < V; v++) {
            T reset = sigmoid(x[v] + r[v]), z = sigmoid(x[V + v] + r[V + v]), r_n = r[2 * V + v];
            T n = tanh_(x[2 * V + v] + reset * r_n), dh = ds[v];
            T dn = dh * (1 - z) * (1 - n * n), dreset = dn * r_n * reset * (1 - reset), dz = dh * (s[v] - n) * z * (1 - z);
            dx[v] = dr[v] = dreset;
            dx[V + v] = dr[V + v] = dz;
            dx[2 * V + v] = dn;
            dr[2 * V + v] = dn * reset;
            ds[v] = dh * z;
        }
    }
};

struct SLSTM {
    static constexpr int64_t gates = 4, states = 4;
    template <class T> static void step(int64_t V, const T* x, const T* r, T* s) {
#pragma omp simd
        for (int64_t v = 0; v < V; v++) {
            T i = x[v] + r[v], f = x[V + v] + r[V + v], z = tanh_(x[2 * V + v] + r[2 * V + v]), o = sigmoid(x[3 * V + v] + r[3 * V + v]);
            T kept = s[2 * V + v] == 0 ? T(-INFINITY) : logsigmoid(f) + s[3 * V + v];
            T m = kept > i ? kept : i, forget = exp_(kept - m), write = exp_(i - m);
            T c = forget * s[V + v] + write * z, n = forget * s[2 * V + v] + write;
            s[v] = o * (c / n);
            s[V + v] = c;
            s[2 * V + v] = n;
            s[3 * V + v] = m;
        }
    }
    template <class T> static void back(int64_t V, const T* x, const T* r, const T* s, T* ds, T*, T* dr) {
#pragma omp simd
        for (int64_t v = 0; v < V; v++) {
            T i = x[v] + r[v], f = x[V + v] + r[V + v], z = tanh_(x[2 * V + v] + r[2 * V + v]), o = sigmoid(x[3 * V + v] + r[3 * V + v]);
            T c_before = s[V + v], n_before = s[2 * V + v];
            T kept = n_before == 0 ? T(-INFINITY) : logsigmoid(f) + s[3 * V + v];
            T m = kept > i ? kept : i, forget = exp_(kept - m), write = exp_(i - m);
            T n = forget * n_before + write, ratio = (forget * c_before + write * z) / n;
            T dh = ds[v], dratio = dh * o / n, dc = ds[V + v] + dratio, dn = ds[2 * V + v] - dratio * ratio;
            T dkept = (dc * c_before + dn * n_before) * forget, di = (dc * z + dn) * write, dm = ds[3 * V + v] - dkept - di;
            dkept += kept >= i ? dm : T(0);
            di += kept >= i ? T(0) : dm;
            dr[v] = di;
            dr[V + v] = dkept * sigmoid(-f);
            dr[2 * V + v] = dc * write * (1 - z * z);
            dr[3 * V + v] = dh * ratio * o * (1 - o);
            ds[v] = 0;
            ds[V + v] = dc * forget;
            ds[2 * V + v] = dn * forget;
            ds[3 * V + v] = dkept;
        }
    }
};

struct Shape {
    int64_t B, S, H, V;  // batch, tokens, heads, channels of a head
};

// body(head, first row, rows)
template <class Body> static void over_heads(const Shape& s, int64_t threads, Body body) {
    int64_t rows = s.H * ((s.B + ROWS - 1) / ROWS) >= threads ? ROWS : 1, groups = (s.B + rows - 1) / rows;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t task = 0; task < s.H * groups; task++) {
        int64_t first = task % groups * rows;
        body(task / groups, first, std::min(rows, s.B - first));
    }
}

// Tensors: x and r [B, T, H, gates, V], R [H, gates, V, V] (to, from), bias [H, gates, V], state and final [states, B, H, V],
// y [B, T, H, V], kept [B, T, H, states - 1, V]: the rest of the state after each token.
template <class Cell, class T>
static void forward(const T* x, const T* R, const T* bias, const T* state, const bool* starts, T* y, T* final, T* r, T* kept, Shape s,
                    int64_t threads) {
    const int64_t V = s.V, MV = Cell::gates * V, SV = Cell::states * V;
    over_heads(s, threads, [&](int64_t head, int64_t first, int64_t rows) {
        const T* matrix = R + head * MV * V;
        Tiles<T> from_h(V, MV, [&](int64_t w, int64_t j) { return matrix[j * V + w]; });
        std::vector<T> now(rows * SV), h(rows * V), product(rows * MV);
        for (int64_t row = 0; row < rows; row++)
            for (int64_t k = 0; k < Cell::states; k++)
                std::copy_n(state + ((k * s.B + first + row) * s.H + head) * V, V, &now[row * SV + k * V]);
        for (int64_t t = 0; t < s.S; t++) {
            for (int64_t row = 0; row < rows; row++) {
                if (starts && starts[(first + row) * s.S + t]) std::fill_n(&now[row * SV], SV, T(0));
                std::copy_n(&now[row * SV], V, &h[row * V]);
                std::copy_n(bias + head * MV, MV, &product[row * MV]);
            }
            from_h.add_product(rows, h.data(), product.data());
            for (int64_t row = 0; row < rows; row++) {
                const int64_t at = ((first + row) * s.S + t) * s.H + head;
                std::copy_n(&product[row * MV], MV, r + at * MV);
                Cell::step(V, x + at * MV, &product[row * MV], &now[row * SV]);
                std::copy_n(&now[row * SV], V, y + at * V);
                std::copy_n(&now[row * SV + V], SV - V, kept + at * (SV - V));
            }
        }
        for (int64_t row = 0; row < rows; row++)
            for (int64_t k = 0; k < Cell::states; k++)
                std::copy_n(&now[row * SV + k * V], V, final + ((k * s.B + first + row) * s.H + head) * V);
    });
}

template <class Cell, class T>
static void backward(const T* x, const T* R, const T* state, const bool* starts, const T* y, const T* r, const T* kept, const T* dy,
                     const T* dfinal, T* dx, T* dr, T* dstate, Shape s, int64_t threads) {
    const int64_t V = s.V, MV = Cell::gates * V, SV = Cell::states * V;
    over_heads(s, threads, [&](int64_t head, int64_t first, int64_t rows) {
        const T* matrix = R + head * MV * V;
        Tiles<T> to_h(MV, V, [&](int64_t j, int64_t w) { return matrix[j * V + w]; });
        std::vector<T> before(SV), ds(rows * SV), all_dr(rows * MV), into_h(rows * V);
        for (int64_t row = 0; row < rows; row++)
            for (int64_t k = 0; k < Cell::states; k++)
                std::copy_n(dfinal + ((k * s.B + first + row) * s.H + head) * V, V, &ds[row * SV + k * V]);
        for (int64_t t = s.S - 1; t >= 0; t--) {
            for (int64_t row = 0; row < rows; row++) {
                const int64_t at = ((first + row) * s.S + t) * s.H + head;
                if (starts && starts[(first + row) * s.S + t]) {
                    std::fill(before.begin(), before.end(), T(0));
                } else if (t == 0) {
                    for (int64_t k = 0; k < Cell::states; k++)
                        std::copy_n(state + ((k * s.B + first + row) * s.H + head) * V, V, &before[k * V]);
                } else {
                    std::copy_n(y + (at - s.H) * V, V, &before[0]);
                    std::copy_n(kept + (at - s.H) * (SV - V), SV - V, &before[V]);
                }
                T* d = &ds[row * SV];
                for (int64_t v = 0; v < V; v++) d[v] += dy[at * V + v];
                Cell::back(V, x + at * MV, r + at * MV, before.data(), d, dx + at * MV, dr + at * MV);
                std::copy_n(dr + at * MV, MV, &all_dr[row * MV]);
                std::fill_n(&into_h[row * V], V, T(0));
            }
            to_h.add_product(rows, all_dr.data(), into_h.data());
            for (int64_t row = 0; row < rows; row++) {
                T* d = &ds[row * SV];
                for (int64_t v = 0; v < V; v++) d[v] += into_h[row * V + v];
                if (starts && starts[(first + row) * s.S + t]) std::fill_n(d, SV, T(0));
            }
        }
        for (int64_t row = 0; row < rows; row++)
            for (int64_t k = 0; k < Cell::states; k++)
                std::copy_n(&ds[row * SV + k * V], V, dstate + ((k * s.B + first + row) * s.H + head) * V);
    });
}

#define EXPORT(name, Cell, T)                                                                                                             \
    extern "C" void forward_##name##_##T(const T* x, const T* R, const T* bias, const T* state, const bool* starts, T* y, T* final,       \
                                         T* r, T* kept, int64_t B, int64_t S, int64_t H, int64_t V, int64_t threads) {                    \
        forward<Cell, T>(x, R, bias, state, starts, y, final, r, kept, {B, S, H, V}, threads);                                            \
    }                                                                                                                                     \
    extern "C" void backward_##name##_##T(const T* x, const T* R, const T* state, const bool* starts, const T* y, const T* r,             \
                                          const T* kept, const T* dy, const T* dfinal, T* dx, T* dr, T* dstate, int64_t B, int64_t S,     \
                                          int64_t H, int64_t V, int64_t threads) {                                                        \
        backward<Cell, T>(x, R, state, starts, y, r, kept, dy, dfinal, dx, dr, dstate, {B, S, H, V}, threads);                            \
    }
#define EXPORT_CELL(name, Cell) EXPORT(name, Cell, float) EXPORT(name, Cell, double)

EXPORT_CELL(lstm, LSTM)
EXPORT_CELL(gru, GRU)
EXPORT_CELL(slstm, SLSTM)
