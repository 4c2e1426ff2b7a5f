// Recurrent loops of LSTM and GRU and a matrix product, called from inside XLA programs on a CPU.
//
// Equations, forward, for a row b of step t; `where` selects at resets:
//
//   h, c <- where(reset[t, b], initial, state after step t - 1)
//   entered[t, b] = [x[t, b], mask[b] * h]                          the operand of the product
//   z = entered[t, b] @ [w_x; w_h] + bias                           [G * H], G = 4 or 3
//   LSTM: i, f, g, o = sigmoid, sigmoid, tanh, sigmoid of z's blocks
//         c <- f * c + i * g;   h <- o * tanh(c)
//   GRU:  r, u = sigmoid of the first blocks;   q = the third block of entered @ w_h, + b_h
//         n = tanh(z_x's third block + r * q);  h <- (1 - u) * n + u * h
//
// GRU has z_x = x @ w_x from outside, because its third block keeps the two products apart; there
// `entered` is mask * h alone.
//
// Backward, from the last step to the first, where dh and dc are the gradients of the state after
// step t, those of the loss at its output included:
//
//   LSTM: dc <- dc + dh * o * (1 - tanh(c)^2)
//         dz = [dc * g * i(1-i),  dc * c_before * f(1-f),  dc * i * (1-g^2),  dh * tanh(c) * o(1-o)]
//         dc_entered = dc * f;   dh_entered = mask * (dz @ w_h^T)
//   GRU:  dn = dh * (1-u) * (1-n^2);  du = dh * (h_before - n) * u(1-u);  dr = dn * q * r(1-r)
//         dz = [dr, du, dn * r];      dh_entered = mask * (dz @ w_h^T) + dh * u
//   d_initial += where(reset[t, b], d_entered, 0)
//   d(state after step t - 1) = where(reset[t, b], 0, scale[t, b] * d_entered)
//
// The gradient of [w_x; w_h] is one product over all steps afterwards, entered^T @ dz.
//
// Blocking. A product's right operand is packed into panels of up to 4 vectors of columns, so that
// the innermost loop reads memory in order: panel[k][vector][lane]. A block multiplies up to
// ROWS rows with one panel, 4 * ROWS sums in registers, DEPTH values of k at a time, so that this
// part of the panel stays in the first cache while all rows pass by. The sums go to a small buffer
// `c`, from which the gates are computed at once, while they are in the cache: of the forward loop
// a panel has the G gates of one vector of units; of the backward loop, 4 vectors of units,
// whose gates of the step before are differentiated right away, so a step is one phase of work.
//
// A number in the result is one sum over k in order, whoever computes it and whatever the other rows
// are: the bits depend neither on the number of threads nor on their timing.
//
// In bfloat16 both operands are rounded, products are summed in float32. Rows are padded with zeros
// to a multiple of 32. Paths: AMX tiles, `vdpbf16ps`, or float32 arithmetic on rounded values.
//
// Reference: Goto & van de Geijn (2008), Anatomy of high-performance matrix multiplication.

#include <array>
#include <cmath>
#include <cstdint>
#include <utility>

#include "threads.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(__AMX_BF16__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace tbptt {

using bf16 = uint16_t;

// ---- Vectors. GCC's and Clang's vector types: one source for AVX-512, AVX2, SSE2 and NEON.

#if defined(__AVX512F__)
constexpr int W = 16, ROWS = 6;  // lanes of a vector, rows of a block: 4 * ROWS sums + 4 + 1 registers
#elif defined(__AVX__)
constexpr int W = 8, ROWS = 3;
#elif defined(__aarch64__)
constexpr int W = 4, ROWS = 6;
#else
constexpr int W = 4, ROWS = 3;
#endif
#if defined(__AMX_BF16__)
constexpr const char* PATH = "amx";
#elif defined(__AVX512BF16__)
constexpr const char* PATH = "avx512_bf16";
#elif defined(__AVX512F__)
constexpr const char* PATH = "avx512";
#elif defined(__AVX__)
constexpr const char* PATH = "avx2";
#else
constexpr const char* PATH = "portable";
#endif
constexpr int VECTORS = 4;       // of a panel, at most
constexpr int WIDE = 16;         // the same, where rows are too few to be worth packing
constexpr size_t DEPTH = 256;    // values of k multiplied before the next rows
constexpr size_t ROW_BLOCK = 64;  // rows whose sums are in `c` at once
constexpr size_t PAD = 32;       // bfloat16 numbers in a row of an AMX tile

typedef float V __attribute__((vector_size(4 * W)));
typedef uint32_t U __attribute__((vector_size(4 * W)));
typedef uint16_t Halves __attribute__((vector_size(2 * W)));
typedef float VInMemory __attribute__((vector_size(4 * W), aligned(4), may_alias));

inline V load(const float* p) { return *(const VInMemory*)p; }
inline void store(float* p, V x) { *(VInMemory*)p = x; }
inline V splat(float x) { return x - V{}; }  // x - 0 is x, also for -0

// The same for the first n lanes, at the end of a row; the others are zero.
inline V load(const float* p, int n) {
  if (n == W) return load(p);
#if defined(__AVX512F__)
  return (V)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
#else
  V x{};
  memcpy(&x, p, 4 * n);
  return x;
#endif
}
inline void store(float* p, V x, int n) {
  if (n == W) return store(p, x);
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)x);
#else
  memcpy(p, &x, 4 * n);
#endif
}

// How many lanes of the vector at column j are within a row.
inline int lanes_at(size_t j, size_t columns) { return j + W <= columns ? W : (int)(columns - j); }
// Calls `act` with a number of lanes, one that the compiler knows where it is all of them.
template <class Act> inline void with_lanes(int lanes, Act&& act) {
  if (lanes == W) act(std::integral_constant<int, W>{});
  else act(lanes);
}

// tanh by the rational function of Eigen, within a few units in the last place; NaN stays NaN.
inline V tanh(V x) {
  const V limit = splat(7.90531110763549805f);
  x = x > limit ? limit : x;
  x = x < -limit ? -limit : x;
  V y = x * x;
  V p = y * -2.76076847742355e-16f + 2.00018790482477e-13f;
  p = y * p + -8.60467152213735e-11f;
  p = y * p + 5.12229709037114e-08f;
  p = y * p + 1.48572235717979e-05f;
  p = y * p + 6.37261928875436e-04f;
  p = y * p + 4.89352455891786e-03f;
  V q = y * 1.19825839466702e-06f + 1.18534705686654e-04f;
  q = y * q + 2.26843463243900e-03f;
  q = y * q + 4.89352518554385e-03f;
  return x * p / q;
}
inline V sigmoid(V x) { return tanh(x * 0.5f) * 0.5f + 0.5f; }

// ---- bfloat16: the upper half of a float32, rounded to nearest even.

inline U rounded(V x) {  // the bfloat16 in the upper half of each lane
  U u = (U)x;
  U nearest = (u + 0x7fff + ((u >> 16) & 1)) & 0xffff0000u;
  return (u & 0x7fffffff) > 0x7f800000 ? (u | 0x400000) & 0xffff0000u : nearest;
}
inline bf16 rounded(float x) {
  uint32_t u;
  memcpy(&u, &x, 4);
  return (u & 0x7fffffff) > 0x7f800000 ? (u >> 16) | 0x40 : (u + 0x7fff + ((u >> 16) & 1)) >> 16;
}
inline float widened(bf16 x) {
  uint32_t u = (uint32_t)x << 16;
  float y;
  memcpy(&y, &u, 4);
  return y;
}

// How operands are kept. `Left`: rows in memory. `Right`: a packed panel, [k][vector][lane], or
// pairs of k, [k / 2][vector][lane][2], where the processor multiplies pairs.
#if defined(__AVX512BF16__)
constexpr bool PAIRS = true;
using RightBf16 = bf16;
#else
constexpr bool PAIRS = false;
using RightBf16 = float;
#endif
template <class Left> using Right = std::conditional_t<std::is_same_v<Left, float>, float, RightBf16>;
template <class Left> constexpr bool paired = !std::is_same_v<Left, float> && PAIRS;
template <class Left> size_t padded(size_t k) {
  return std::is_same_v<Left, float> ? k : (k + PAD - 1) / PAD * PAD;
}

inline void put(float* p, V x, int n) { store(p, x, n); }
inline void put(bf16* p, V x, int n) {
  const Halves halves = __builtin_convertvector(rounded(x) >> 16, Halves);
  if (n == W) memcpy(p, &halves, sizeof halves);
  else memcpy(p, &halves, 2 * n);
}
inline U load(const bf16* p, int n) {  // in the lower half of each lane
  Halves halves{};
  if (n == W) memcpy(&halves, p, sizeof halves);
  else memcpy(&halves, p, 2 * n);
  return __builtin_convertvector(halves, U);
}

// ---- Products of up to ROWS rows with one panel: c[r][v] (+)= sum_k a[r][k] * b[k][v].

// `b_k` and `b_v` are the distances between values of k and between vectors of a packed panel.
template <class Left> struct Operands {
  const Left* a;
  size_t a_row, a_k;  // a_k: 1, but for a transposed matrix of float32
  const Right<Left>* b;
  size_t b_k, b_v, depth;
  float* c;
  bool add;
};

template <int R, int N, class Left> void block(const Operands<Left>& x) {
  V sum[R][N];
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int v = 0; v < N; v++) sum[r][v] = x.add ? load(x.c + (r * N + v) * W) : V{};
  const Left* a = x.a;
  const Right<Left>* b = x.b;
  const size_t a_row = x.a_row, a_k = x.a_k, b_k = x.b_k, b_v = x.b_v, depth = x.depth;
#if defined(__AVX512BF16__)
  if constexpr (paired<Left>) {
    for (size_t k = 0; k < depth; k += 2, b += 2 * b_k) {
      __m512bh right[N];
#pragma GCC unroll 8
      for (int v = 0; v < N; v++) right[v] = (__m512bh)_mm512_loadu_si512(b + 2 * v * b_v);
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) {
        int32_t pair;
        memcpy(&pair, a + r * a_row + k, 4);
        const __m512bh left = (__m512bh)_mm512_set1_epi32(pair);
#pragma GCC unroll 8
        for (int v = 0; v < N; v++) sum[r][v] = (V)_mm512_dpbf16_ps((__m512)sum[r][v], left, right[v]);
      }
    }
  } else
#endif
    for (size_t k = 0; k < depth; k++, a += a_k, b += b_k) {
      V right[N];
#pragma GCC unroll 8
      for (int v = 0; v < N; v++) right[v] = load((const float*)b + v * b_v);
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) {
        V left;
        if constexpr (std::is_same_v<Left, float>) left = splat(a[r * a_row]);
        else left = splat(widened(a[r * a_row]));
#pragma GCC unroll 8
        for (int v = 0; v < N; v++) sum[r][v] += left * right[v];
      }
    }
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int v = 0; v < N; v++) store(x.c + (r * N + v) * W, sum[r][v]);
}

template <class Left> using Block = void (*)(const Operands<Left>&);
template <class Left, int N, int... R>
constexpr std::array<Block<Left>, ROWS> blocks(std::integer_sequence<int, R...>) {
  return {block<R + 1, N, Left>...};
}
template <class Left> Block<Left> block_of(int rows, int vectors) {
  constexpr auto all = std::make_integer_sequence<int, ROWS>{};
  static constexpr std::array<Block<Left>, ROWS> table[VECTORS] = {
      blocks<Left, 1>(all), blocks<Left, 2>(all), blocks<Left, 3>(all), blocks<Left, 4>(all)};
  return table[vectors - 1][rows - 1];
}

#if defined(__AMX_BF16__)
// Tiles of 16 rows x 16 sums: two by two of them in registers, from two tiles of rows and two of a
// panel. TensorFlow's oneDNN configures tiles for itself, once a thread, so what was there before is
// put back.
struct Tiles {
  alignas(64) uint8_t before[64];
  int first = -1, second = -1;
  Tiles() { _tile_storeconfig(before); }
  ~Tiles() {
    if (before[0]) _tile_loadconfig(before);
    else _tile_release();
  }
  void configure(int r0, int r1) {  // rows of the two tiles; of the second 0 if there is none
    if (r0 == first && r1 == second) return;
    first = r0, second = r1;
    alignas(64) uint8_t wanted[64] = {1};  // palette 1; bytes a row from 16, rows from 48
    const int rows[8] = {r0, r0, r1 ? r1 : 1, r1 ? r1 : 1, r0, r1 ? r1 : 1, 16, 16};
    for (int i = 0; i < 8; i++) wanted[16 + 2 * i] = 64, wanted[48 + i] = rows[i];
    _tile_loadconfig(wanted);
  }
};

inline void multiply_tiles(const Operands<bf16>& x, size_t rows, int n) {
  Tiles tiles;
  const size_t a_row = 2 * x.a_row, b_row = 2 * x.b_k * 2, c_row = 4 * n * W;  // bytes
  for (size_t r = 0; r < rows; r += 32) {
    const int r0 = std::min<size_t>(16, rows - r), r1 = rows - r > 16 ? std::min<size_t>(16, rows - r - 16) : 0;
    tiles.configure(r0, r1);
    for (int v = 0; v < n; v += 2) {
      const bool wide = v + 1 < n, tall = r1 > 0;
      float* c = x.c + (r * n + v) * W;
      float* below = c + 16 * n * W;
      if (x.add) {
        _tile_loadd(0, c, c_row);
        if (wide) _tile_loadd(1, c + W, c_row);
        if (tall) _tile_loadd(2, below, c_row);
        if (tall && wide) _tile_loadd(3, below + W, c_row);
      } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
      }
      const bf16 *a = x.a + r * x.a_row, *b = x.b + 2 * v * x.b_v;
      for (size_t k = 0; k < x.depth; k += PAD, a += PAD, b += PAD * x.b_k) {
        _tile_loadd(4, a, a_row);
        _tile_loadd(6, b, b_row);
        _tile_dpbf16ps(0, 4, 6);
        if (wide) {
          _tile_loadd(7, b + 2 * x.b_v, b_row);
          _tile_dpbf16ps(1, 4, 7);
        }
        if (tall) {
          _tile_loadd(5, a + 16 * x.a_row, a_row);
          _tile_dpbf16ps(2, 5, 6);
          if (wide) _tile_dpbf16ps(3, 5, 7);
        }
      }
      _tile_stored(0, c, c_row);
      if (wide) _tile_stored(1, c + W, c_row);
      if (tall) _tile_stored(2, below, c_row);
      if (tall && wide) _tile_stored(3, below + W, c_row);
    }
  }
}
#endif

// c[r][v] (+)= a[r] @ panel for all rows, as many as ROW_BLOCK; n vectors.
template <class Left> void multiply(Operands<Left> x, size_t rows, int n) {
#if defined(__AMX_BF16__)
  if constexpr (paired<Left>) return multiply_tiles(x, rows, n);
#endif
  const size_t tiles = (rows + ROWS - 1) / ROWS, depth = x.depth;
  const Left* a = x.a;
  float* c = x.c;
  for (size_t k = 0; k < depth; k += DEPTH, x.b += DEPTH * x.b_k, x.add = true) {
    x.depth = std::min(DEPTH, depth - k);
    for (size_t i = 0; i < tiles; i++) {  // of nearly the same size: a block of one row is slow
      const size_t r0 = rows * i / tiles, r1 = rows * (i + 1) / tiles;
      x.a = a + r0 * x.a_row + k * x.a_k;
      x.c = c + r0 * n * W;
      block_of<Left>(r1 - r0, n)(x);
    }
  }
}

// c[r][j] += sum_k a[r][k] * b[k][j] for few rows; c is written up to a multiple of W columns. Reading
// b takes longer than multiplying, so it is read as it lies in memory.
inline void multiply_few(const float* a, size_t a_row, size_t rows, const float* b, size_t b_row, size_t depth, size_t columns,
                         float* c, size_t c_row) {
  auto add = [&](size_t k, auto several) {
    constexpr int count = several;
    for (size_t j = 0; j < columns; j += W) {
      const int lanes = columns - j < W ? columns - j : W;
      V right[count];
      for (int i = 0; i < count; i++) right[i] = load(b + (k + i) * b_row + j, lanes);
      for (size_t r = 0; r < rows; r++) {
        V sum = load(c + r * c_row + j);
        for (int i = 0; i < count; i++) sum += splat(a[r * a_row + k + i]) * right[i];
        store(c + r * c_row + j, sum);
      }
    }
  };
  size_t k = 0;
  for (; k + 8 <= depth; k += 8) add(k, std::integral_constant<int, 8>{});
  for (; k < depth; k++) add(k, std::integral_constant<int, 1>{});
}

// ---- Packing.

// A matrix [K, columns] in memory, transposed or not, whose rows from `split` on may lie elsewhere.
struct Matrix {
  const float* data;
  size_t by_k, by_j;
  const float* more = nullptr;
  size_t split = SIZE_MAX;
  const float* at(size_t k, size_t j) const {
    return (k < split ? data + k * by_k : more + (k - split) * by_k) + j * by_j;
  }
};

// Packs k in [k0, k1) of n vectors of columns: vector v has the columns first + v * apart + [0, W),
// those up to lanes[v]; the rest of the panel is zero, up to the padded depth.
template <class Left>
void pack(const Matrix& m, size_t k0, size_t k1, size_t first, size_t apart, const int* lanes, int n,
          Right<Left>* panel) {
  const size_t depth = k1 - k0, total = padded<Left>(depth);
  constexpr size_t STEP = 64;  // so many k at a time: a transposed matrix is read by columns
  for (size_t at = 0; at < total; at += STEP) {
    const size_t until = std::min(total, at + STEP);
    for (int v = 0; v < n; v++) {
      const size_t j = first + v * apart;
      auto row = [&](size_t k) {  // of columns side by side
        return k < depth ? load(m.at(k0 + k, j), lanes[v]) : V{};
      };
      auto row_of = [&](size_t k, int l) {  // of a transposed matrix: values of k, of one column
        const V some = k < depth && l < lanes[v] ? load(m.at(k0 + k, j + l), lanes_at(k, depth)) : V{};
        return std::is_same_v<Left, float> || PAIRS ? some : (V)rounded(some);
      };
      if constexpr (paired<Left>) {
        uint32_t* to = (uint32_t*)panel;
        if (m.by_j == 1)
          for (size_t k = at; k < until; k += 2) {
            const U both = (rounded(row(k)) >> 16) | rounded(row(k + 1));
            memcpy(to + ((k / 2) * n + v) * W, &both, sizeof both);
          }
        else
          for (int l = 0; l < W; l++)  // a column of the matrix lies in memory as a row
            for (size_t k = at; k < until; k += W) {
              bf16 column[W];
              put(column, row_of(k, l), W);
              for (int i = 0; i < W && k + i < until; i += 2)
                memcpy(to + (((k + i) / 2) * n + v) * W + l, column + i, 4);
            }
      } else {
        constexpr bool rounds = !std::is_same_v<Left, float>;
        float* to = (float*)panel;
        if (m.by_j == 1)
          for (size_t k = at; k < until; k++) store(to + (k * n + v) * W, rounds ? (V)rounded(row(k)) : row(k));
        else
          for (int l = 0; l < W; l++)
            for (size_t k = at; k < until; k += W) {
              const V column = row_of(k, l);
              for (int i = 0; i < W && k + i < until; i++) to[((k + i) * n + v) * W + l] = column[i];
            }
      }
    }
  }
}

// ---- How work is shared.

// Vectors of columns, split into panels, and rows, split into blocks; a chunk is one of each.
struct Grid {
  size_t vectors, panels, rows, row_blocks;
  Grid(size_t columns, size_t rows, size_t widest, size_t regions)
      : vectors((columns + W - 1) / W), panels((vectors + widest - 1) / widest), rows(rows),
        row_blocks((rows + ROW_BLOCK - 1) / ROW_BLOCK) {
    panels = std::min(vectors, (panels + regions - 1) / regions * regions);  // the same for each thread
  }
  size_t chunks() const { return panels * row_blocks; }
  size_t first(size_t panel) const { return vectors * panel / panels; }
  int size(size_t panel) const { return first(panel + 1) - first(panel); }
  std::pair<size_t, size_t> rows_of(size_t i) const {
    return {rows * i / row_blocks, rows * (i + 1) / row_blocks};
  }
};

// ---- The product, C [M, N] = A [M, K] @ B [K, N], either transposed in memory.

// A chunk is a panel and up to ROWS_A_CHUNK rows; it packs its part of the panel itself, which stays
// in the cache. Of K so much is taken at a time that the rows of A stay in the second cache while
// the panels pass by; the sums of the next part go on from those in C.
constexpr size_t ROWS_A_CHUNK = 512, BYTES_OF_ROWS = 512 << 10;

struct Product {
  size_t M, K, N;
  const void* a;          // float, or bf16 that is transposed: rows of a_stride numbers
  size_t a_stride;
  bool a_is_rounded;
  const float* b;
  bool transpose_a, transpose_b;
  float* c;
  float* more = nullptr;  // where the rows of C from `split` on are
  size_t split = SIZE_MAX;
  float* row(size_t m) const { return m < split ? c + m * N : more + (m - split) * N; }
};

// Rounds rows [m0, m1) of A, k in [k0, k1), with zeros up to the padded depth.
inline void round_rows(const Product& x, size_t m0, size_t m1, size_t k0, size_t k1, size_t stride, bf16* rows) {
  const size_t end = k0 + padded<bf16>(k1 - k0);
  const auto* a = (const float*)x.a;
  const auto* narrow = (const bf16*)x.a;
  if (!x.transpose_a) {
    for (size_t m = m0; m < m1; m++)
      for (size_t k = k0; k < end; k += W) {
        const int lanes = k < k1 ? lanes_at(k, k1) : 0;
        put(rows + m * stride + k - k0, lanes ? load(a + m * x.a_stride + k, lanes) : V{}, lanes_at(k, end));
      }
    return;
  }
  for (size_t m = m0; m < m1; m += W)  // two k of W rows at a time: pairs, that are written one by one
    for (size_t k = k0; k < end; k += 2) {
      const int lanes = lanes_at(m, m1);
      U half[2] = {};
      for (size_t i = 0; i < 2 && k + i < k1; i++)
        half[i] = x.a_is_rounded ? load(narrow + (k + i) * x.a_stride + m, lanes)
                                 : rounded(load(a + (k + i) * x.a_stride + m, lanes)) >> 16;
      const U both = half[0] | half[1] << 16;
      for (int l = 0; l < lanes; l++) memcpy(rows + (m + l) * stride + k - k0, (uint32_t*)&both + l, 4);
    }
}

inline void product_of_few(const Pool& pool, size_t regions, const Product& x) {
  const Grid grid(x.N, x.M, WIDE, regions);
  run(pool, regions, 1, grid.chunks(), [&](size_t, size_t chunk) {
    alignas(64) float c[ROWS * WIDE * W] = {};
    const size_t j = grid.first(chunk) * W, width = grid.size(chunk) * W, columns = std::min(width, x.N - j);
    multiply_few((const float*)x.a, x.K, x.M, x.b + j, x.N, x.K, columns, c, width);
    for (size_t m = 0; m < x.M; m++) std::copy_n(c + m * width, columns, x.row(m) + j);
  });
}

template <class Left> void product(const Pool& pool, const Product& x) {
  if (x.M * x.N == 0 || x.K == 0) {
    for (size_t m = 0; m < x.M; m++) std::fill_n(x.row(m), x.N, 0.0f);
    return;
  }
  constexpr bool is_float = std::is_same_v<Left, float>;
  const size_t regions = regions_for(pool, 2.0 * (x.M + 4) * x.K * x.N);
  if (is_float && !x.transpose_a && !x.transpose_b && x.M <= ROWS) return product_of_few(pool, regions, x);
  const Grid grid(x.N, x.M, VECTORS, regions);
  size_t blocks = (x.M + ROWS_A_CHUNK - 1) / ROWS_A_CHUNK;
  while (blocks * grid.panels < 2 * regions && blocks < grid.row_blocks) blocks++;
  const size_t fitting = BYTES_OF_ROWS / (std::min(x.M, ROWS_A_CHUNK) * sizeof(Left)) / PAD * PAD;
  const size_t step = std::min(x.K, std::clamp<size_t>(fitting, DEPTH, 4 * DEPTH));
  const size_t parts = (x.K + step - 1) / step, depth = padded<Left>(step);
  const Matrix b{x.b, x.transpose_b ? 1 : x.N, x.transpose_b ? x.K : 1};
  const Scratch memory(is_float ? 0 : x.M * depth * sizeof(Left));
  auto* rows = memory.as<Left>();

  auto multiply_chunk = [&](size_t k0, size_t k1, size_t chunk) {
    const size_t panel = chunk % grid.panels, j = grid.first(panel) * W;
    const size_t first = x.M * (chunk / grid.panels) / blocks, end = x.M * (chunk / grid.panels + 1) / blocks;
    const int n = grid.size(panel);
    int lanes[VECTORS];
    for (int v = 0; v < n; v++) lanes[v] = lanes_at(j + v * W, x.N);
    const Scratch scratch(n * W * depth * sizeof(Right<Left>));
    auto* packed = scratch.as<Right<Left>>();
    pack<Left>(b, k0, k1, j, W, lanes, n, packed);
    alignas(64) float c[ROW_BLOCK * VECTORS * W];
    for (size_t m0 = first; m0 < end; m0 += ROW_BLOCK) {
      const size_t m1 = std::min(end, m0 + ROW_BLOCK);
      Operands<Left> given{rows + m0 * depth, depth, 1, packed, size_t(n * W), W, padded<Left>(k1 - k0), c, k0 > 0};
      if constexpr (is_float) {
        const size_t by_row = x.transpose_a ? 1 : x.a_stride, by_k = x.transpose_a ? x.a_stride : 1;
        given.a = (const float*)x.a + m0 * by_row + k0 * by_k, given.a_row = by_row, given.a_k = by_k;
      }
      auto each = [&](auto&& act) {
        for (size_t m = m0; m < m1; m++)
          for (int v = 0; v < n; v++) act(x.row(m) + j + v * W, c + ((m - m0) * n + v) * W, lanes[v]);
      };
      if (given.add) each([](float* total, float* sum, int lanes) { store(sum, load(total, lanes)); });
      multiply(given, m1 - m0, n);
      each([](float* total, float* sum, int lanes) { store(total, load(sum), lanes); });
    }
  };
  const size_t chunks = blocks * grid.panels, phases = is_float ? 1 : 2;
  run(pool, regions, phases * parts, chunks, [&](size_t phase, size_t chunk) {
    const size_t k0 = phase / phases * step, k1 = std::min(x.K, k0 + step);
    if constexpr (!is_float)
      if (phase % 2 == 0)
        return round_rows(x, x.M * chunk / chunks, x.M * (chunk + 1) / chunks, k0, k1, depth, rows);
    multiply_chunk(k0, k1, chunk);
  });
}

// ---- The sum of squares, of pieces of a fixed size that are added in order.

inline float sum_of_squares(const Pool& pool, const float* x, size_t count) {
  constexpr size_t PIECE = 1 << 16, SUMS = 4;
  const size_t pieces = (count + PIECE - 1) / PIECE;
  std::vector<double> parts(pieces);
  run(pool, regions_for(pool, 4.0 * count), 1, pieces, [&](size_t, size_t piece) {
    V sums[SUMS] = {};
    const size_t end = std::min(count, (piece + 1) * PIECE);
    size_t i = piece * PIECE;
    for (; i + SUMS * W <= end; i += SUMS * W)
      for (size_t k = 0; k < SUMS; k++) sums[k] += load(x + i + k * W) * load(x + i + k * W);
    for (; i < end; i += W) sums[0] += load(x + i, lanes_at(i, end)) * load(x + i, lanes_at(i, end));
    for (size_t l = 0; l < SUMS * W; l++) parts[piece] += sums[l / W][l % W];
  });
  double total = 0;
  for (double part : parts) total += part;
  return total;
}

// ---- The forward loop.

struct Sizes {
  size_t T, B, H;
};

// Pointers of arrays as in the equations; those that are not given are null.
struct Forward : Sizes {
  size_t D;                                               // of x; 0: z_x is given
  const float *x, *w_x, *z_x;                             // [T, B, D], [D, G H], [T, B, G H]
  const float *w_h, *bias, *b_h, *hidden0, *cell0;        // [H, G H], [G H], [H], [B, H] twice
  const bool* reset;                                      // [T, B]
  const float *initial_hidden, *initial_cell, *mask;      // [B, H] each; no initial state: zeros
  float *hidden, *cell, *gates;                           // [T, B, H] twice, [T, B, 4 H]
  void* entered;                                          // [T, B, padded D + H]
};

// The row of a state before step t, or null for zeros.
inline const float* row_before(const Sizes& s, const bool* reset, const float* initial,
                               const float* first, const float* states, size_t t, size_t b) {
  if (reset && reset[t * s.B + b]) return initial ? initial + b * s.H : nullptr;
  return (t ? states + (t - 1) * s.B * s.H : first) + b * s.H;
}

template <int G, class Left> void forward(const Pool& pool, const Forward& x) {
  const size_t B = x.B, H = x.H, D = x.D, depth = padded<Left>(D + H);
  const size_t regions = regions_for(pool, 2.0 * (B + 4) * G * H * (D + H));
  const bool few = std::is_same_v<Left, float> && x.T * B <= ROWS;  // not worth packing
  const Grid grid(H, B, few ? WIDE : 1, regions);
  const Matrix weights{x.w_x, G * H, 1, x.w_h, D};
  const Scratch memory(few ? 0 : grid.vectors * G * W * depth * sizeof(Right<Left>));
  auto* panels = memory.as<Right<Left>>();
  auto* entered = (Left*)x.entered;

  auto enter = [&](size_t t, size_t b, size_t j, auto lanes, V hidden) {
    if (x.mask) hidden *= load(x.mask + b * H + j, lanes);
    put(entered + (t * B + b) * depth + D + j, hidden, lanes);
  };
  auto start = [&](size_t b, size_t j, int lanes) {
    const float* row = row_before(x, x.reset, x.initial_hidden, x.hidden0, x.hidden, 0, b);
    enter(0, b, j, lanes, row ? load(row + j, lanes) : V{});
    if (j + W >= H)
      for (size_t t = 0; t < x.T; t++)
        std::fill(entered + (t * B + b) * depth + D + H, entered + (t * B + b + 1) * depth, Left(0));
  };
  auto enter_inputs = [&](size_t row) {
    for (size_t j = 0; j < D; j += W) {
      const int lanes = lanes_at(j, D);
      put(entered + row * depth + j, load(x.x + row * D + j, lanes), lanes);
    }
  };
  // `apart`: how far the sums of two gates are from each other.
  auto gates = [&](size_t t, size_t b, size_t j, auto lanes, const float* sums, size_t apart) {
    const size_t at = (t * B + b) * H + j;
    auto input = [&](int q) {
      const V bias = load(x.bias + q * H + j, lanes);
      return x.z_x ? bias + load(x.z_x + (t * B + b) * G * H + q * H + j, lanes) : bias;
    };
    float* gates = x.gates + (t * B + b) * 4 * H + j;
    V z[G], hidden;
    for (int q = 0; q < G; q++) z[q] = load(sums + q * apart);
    if constexpr (G == 4) {
      const float* row = row_before(x, x.reset, x.initial_cell, x.cell0, x.cell, t, b);
      const V before = row ? load(row + j, lanes) : V{};
      const V i = sigmoid(z[0] + input(0)), f = sigmoid(z[1] + input(1));
      const V g = tanh(z[2] + input(2)), o = sigmoid(z[3] + input(3));
      const V cell = f * before + i * g;
      hidden = o * tanh(cell);
      store(x.cell + at, cell, lanes);
      const V all[4] = {i, f, g, o};
      for (int q = 0; q < 4; q++) store(gates + q * H, all[q], lanes);
    } else {
      const float* row = row_before(x, x.reset, x.initial_hidden, x.hidden0, x.hidden, t, b);
      const V before = row ? load(row + j, lanes) : V{};
      const V r = sigmoid(z[0] + input(0)), u = sigmoid(z[1] + input(1));
      const V q = z[2] + load(x.b_h + j, lanes), n = tanh(input(2) + r * q);
      hidden = (1.0f - u) * n + u * before;
      const V all[4] = {r, u, n, q};
      for (int k = 0; k < 4; k++) store(gates + k * H, all[k], lanes);
    }
    store(x.hidden + at, hidden, lanes);
    if (t + 1 == x.T) return;
    if (x.reset && x.reset[(t + 1) * B + b])
      hidden = x.initial_hidden ? load(x.initial_hidden + b * H + j, lanes) : V{};
    enter(t + 1, b, j, lanes, hidden);
  };
  run(pool, regions, x.T + 1, grid.chunks(), [&](size_t phase, size_t chunk) {
    const size_t panel = chunk / grid.row_blocks, first = grid.first(panel) * W, width = grid.size(panel) * W;
    const auto [b0, b1] = grid.rows_of(chunk % grid.row_blocks);
    Right<Left>* packed = panels + first * G * depth;
    const size_t t = phase - 1;
    alignas(64) float c[std::max<size_t>(ROW_BLOCK, ROWS * WIDE) * G * W];
    if (phase == 0) {
      const int lanes = lanes_at(first, H), all[VECTORS] = {lanes, lanes, lanes, lanes};
      if (chunk % grid.row_blocks == 0 && !few) pack<Left>(weights, 0, D + H, first, H, all, G, packed);
      for (size_t i = x.T * B * chunk / grid.chunks(); i < x.T * B * (chunk + 1) / grid.chunks(); i++) enter_inputs(i);
    } else if (few) {
      if constexpr (std::is_same_v<Left, float>) {
        std::fill_n(c, (b1 - b0) * G * width, 0.0f);
        const float* rows = entered + (t * B + b0) * depth;
        const size_t columns = std::min(width, H - first);
        for (int q = 0; q < G; q++) {
          const size_t j = q * H + first;
          multiply_few(rows, depth, b1 - b0, x.w_x + j, G * H, D, columns, c + q * width, G * width);
          multiply_few(rows + D, depth, b1 - b0, x.w_h + j, G * H, H, columns, c + q * width, G * width);
        }
      }
    } else {
      multiply(Operands<Left>{entered + (t * B + b0) * depth, depth, 1, packed, size_t(G * W), W, depth, c, false}, b1 - b0, G);
    }
    for (size_t b = b0; b < b1; b++)
      for (size_t j = first; j < std::min(H, first + width); j += W) {
        if (phase == 0) start(b, j, lanes_at(j, H));
        else with_lanes(lanes_at(j, H), [&](auto lanes) { gates(t, b, j, lanes, c + (b - b0) * G * width + j - first, width); });
      }
  });
}

// ---- The backward loop.

struct Backward : Sizes {
  const float *d_outputs, *d_hidden, *d_cell;             // [T, B, H], of the last state [B, H]
  const float *w_h, *gates;                               // [H, G H], [T, B, 4 H]
  const float *states, *first;                            // cells, or hidden states for GRU
  const bool* reset;                                      // [T, B]
  const float *scale, *initial, *mask;                    // [T, B]; `initial` as `first`
  float *d_z, *d_inputs;                                  // [T, B, G H]; d_inputs for GRU
  float *d_hidden0, *d_cell0;                             // [B, H]
  float *d_initial_hidden, *d_initial_cell;               // [B, H], null: not wanted
};

template <int G, class Left> void backward(const Pool& pool, const Backward& x) {
  const size_t T = x.T, B = x.B, H = x.H, depth = padded<Left>(G * H);
  const size_t regions = regions_for(pool, 2.0 * (B + 4) * G * H * H);
  const Grid grid(H, B, VECTORS, regions);
  const Matrix transposed{x.w_h, 1, G * H};
  const Scratch memory(grid.vectors * W * depth * sizeof(Right<Left>));
  constexpr bool is_float = std::is_same_v<Left, float>;
  const Scratch ring(is_float ? 0 : 2 * B * depth * sizeof(Left));  // d_z of two steps, rounded
  auto* panels = memory.as<Right<Left>>();

  auto row_of = [&](size_t t, size_t b) -> const Left* {
    if constexpr (is_float) return x.d_z + (t * B + b) * depth;
    else return ring.as<Left>() + (t % 2 * B + b) * depth;
  };
  // Gradients of the gates of step t, for some units of a row; leaves those of the entered state.
  auto gates_back = [&](size_t t, size_t b, size_t j, auto lanes, V dh, V dc) {
    const float* gates = x.gates + (t * B + b) * 4 * H + j;
    const float* row = row_before(x, x.reset, x.initial, x.first, x.states, t, b);
    const V before = row ? load(row + j, lanes) : V{};
    float* d_z = x.d_z + (t * B + b) * G * H + j;
    V gate[4], d[G];
    for (int q = 0; q < 4; q++) gate[q] = load(gates + q * H, lanes);
    dh += load(x.d_outputs + (t * B + b) * H + j, lanes);
    if constexpr (G == 4) {
      const auto [i, f, g, o] = gate;
      const V shown = tanh(load(x.states + (t * B + b) * H + j, lanes));
      dc += dh * o * (1.0f - shown * shown);
      d[0] = dc * g * i * (1.0f - i);
      d[1] = dc * before * f * (1.0f - f);
      d[2] = dc * i * (1.0f - g * g);
      d[3] = dh * shown * o * (1.0f - o);
      store(x.d_cell0 + b * H + j, dc * f, lanes);
    } else {
      const auto [r, u, n, q] = gate;
      const V dn = dh * (1.0f - u) * (1.0f - n * n);
      d[0] = dn * q * r * (1.0f - r);
      d[1] = dh * (before - n) * u * (1.0f - u);
      d[2] = dn * r;
      float* d_inputs = x.d_inputs + (t * B + b) * G * H + j;
      store(d_inputs, d[0], lanes);
      store(d_inputs + H, d[1], lanes);
      store(d_inputs + 2 * H, dn, lanes);
      store(x.d_hidden0 + b * H + j, dh * u, lanes);
    }
    for (int q = 0; q < G; q++) {
      store(d_z + q * H, d[q], lanes);
      if constexpr (!is_float) put((Left*)row_of(t, b) + q * H + j, d[q], lanes);
    }
  };
  auto start = [&](size_t b, size_t j, int lanes) {
    const size_t at = b * H + j;
    if (x.d_initial_hidden) store(x.d_initial_hidden + at, V{}, lanes);
    if (x.d_initial_cell) store(x.d_initial_cell + at, V{}, lanes);
    gates_back(T - 1, b, j, lanes, load(x.d_hidden + at, lanes), x.d_cell ? load(x.d_cell + at, lanes) : V{});
  };
  // Splits the gradient of an entered state between the initial state and the step before.
  auto pass = [&](bool resets, float scale, float* d_initial, V d, auto lanes) {
    if (resets) {
      if (d_initial) store(d_initial, load(d_initial, lanes) + d, lanes);
      return V{};
    }
    return x.scale ? (scale > 0.0f ? d * scale : V{}) : d;
  };
  auto step_back = [&](size_t t, size_t b, size_t j, auto lanes, V dh) {
    const size_t at = b * H + j;
    if (x.mask) dh *= load(x.mask + at, lanes);
    if constexpr (G == 3) dh += load(x.d_hidden0 + at, lanes);
    const bool resets = x.reset && x.reset[t * B + b];
    const float scale = x.scale ? x.scale[t * B + b] : 1.0f;
    dh = pass(resets, scale, x.d_initial_hidden ? x.d_initial_hidden + at : nullptr, dh, lanes);
    V dc{};
    if constexpr (G == 4)
      dc = pass(resets, scale, x.d_initial_cell ? x.d_initial_cell + at : nullptr, load(x.d_cell0 + at, lanes), lanes);
    if (t) return gates_back(t - 1, b, j, lanes, dh, dc);
    store(x.d_hidden0 + at, dh, lanes);
    if constexpr (G == 4) store(x.d_cell0 + at, dc, lanes);
  };
  run(pool, regions, T + 1, grid.chunks(), [&](size_t phase, size_t chunk) {
    const size_t panel = chunk / grid.row_blocks, first = grid.first(panel) * W;
    const auto [b0, b1] = grid.rows_of(chunk % grid.row_blocks);
    const int n = grid.size(panel);
    Right<Left>* packed = panels + first * depth;
    int lanes[VECTORS];
    for (int v = 0; v < n; v++) lanes[v] = lanes_at(first + v * W, H);
    alignas(64) float c[ROW_BLOCK * VECTORS * W];
    if (phase == 0) {
      if (chunk % grid.row_blocks == 0) pack<Left>(transposed, 0, G * H, first, W, lanes, n, packed);
      if constexpr (!is_float)
        if (panel == 0)
          for (size_t b = b0; b < b1; b++)
            for (size_t t : {0, 1}) std::fill((Left*)row_of(t, b) + G * H, (Left*)row_of(t, b) + depth, Left(0));
    } else {
      Operands<Left> given{row_of(T - phase, b0), depth, 1, packed, size_t(n * W), W, depth, c, false};
      multiply(given, b1 - b0, n);
    }
    for (size_t b = b0; b < b1; b++)
      for (int v = 0; v < n; v++) {
        const size_t j = first + v * W;
        if (phase == 0) start(b, j, lanes[v]);
        else with_lanes(lanes[v], [&](auto lanes) { step_back(T - phase, b, j, lanes, load(c + ((b - b0) * n + v) * W)); });
      }
  });
}

// ---- Whether the kernels compute right here, before they are used for the first time.

template <class Left> bool product_is_right() {
  const size_t M = 37, K = 67, N = 4 * W + 5;
  std::vector<float> a(M * K), b(K * N), c(M * N);
  auto some = [state = 1u]() mutable {
    state = state * 1664525u + 1013904223u;
    return float(int(state >> 8 & 15) - 7);  // small whole numbers: every sum is exact
  };
  for (float& x : a) x = some();
  for (float& x : b) x = some();
  product<Left>(Pool{1, nullptr}, Product{M, K, N, a.data(), K, false, b.data(), false, false, c.data()});
  for (size_t m = 0; m < M; m++)
    for (size_t n = 0; n < N; n++) {
      float sum = 0;
      for (size_t k = 0; k < K; k++) sum += a[m * K + k] * b[k * N + n];
      if (sum != c[m * N + n]) return false;
    }
  return true;
}

// Linux lets a process use AMX tiles once it has asked; null, or a sentence.
inline const char* allow_tiles() {
#if defined(__AMX_BF16__) && defined(SYS_arch_prctl)
  constexpr int REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;
  if (syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA)) return "the system does not allow the use of AMX";
#endif
  return nullptr;
}

// Computes two products and compares them; null, or a sentence.
inline const char* self_check() {
  if (const char* refused = allow_tiles()) return refused;
  if (!product_is_right<float>()) return "a product in float32 has a wrong result";
  if (!product_is_right<bf16>()) return "a product in bfloat16 has a wrong result";
  return nullptr;
}

}  // namespace tbptt
