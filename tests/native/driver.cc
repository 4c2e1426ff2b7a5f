// Compares the kernels with plain loops over random shapes: driver SEED CASES
//
// The loops are the equations of kernels.cc, in double. Each step is computed from the kernel's own
// state before it, so that a bfloat16 rounded the other way does not grow. Every array has exactly
// the size of its shape, for the address sanitizer. The first mistake is printed and ends the program.

#if defined(EMULATE_TILES)
#include "tiles.h"
#endif
#include "kernels.cc"

#include <condition_variable>
#include <deque>
#include <limits>
#include <random>
#include <string>

using namespace tbptt;
using Floats = std::vector<float>;
using Doubles = std::vector<double>;

static std::mt19937 generator;
static std::string what;  // the case at hand

static void fail(const std::string& text) {
  printf("%s: %s\n", what.c_str(), text.c_str());
  fflush(stdout);
  _Exit(1);
}
static size_t upto(size_t n) { return generator() % n + 1; }
static bool coin() { return generator() % 2; }
static Floats normal(size_t n, float deviation = 1) {
  std::normal_distribution<float> distribution(0, deviation);
  Floats x(n);
  for (float& value : x) value = distribution(generator);
  return x;
}
static Floats one_of(size_t n, std::initializer_list<float> choices) {
  Floats x(n);
  for (float& value : x) value = choices.begin()[generator() % choices.size()];
  return x;
}
static const float* given(const Floats& x) { return x.empty() ? nullptr : x.data(); }
static float* wanted(Floats& x) { return x.empty() ? nullptr : x.data(); }

static void close(const char* name, size_t at, float got, double want) {
  if (std::isfinite(want) ? std::abs(got - want) <= 3e-5 * (1 + std::abs(want)) : !std::isfinite(got)) return;
  fail(std::string(name) + "[" + std::to_string(at) + "] is " + std::to_string(got) + ", not " + std::to_string(want));
}
// Equal to the bit, in all rows of `width` numbers but one.
static void same(const char* name, const Floats& x, const Floats& y, size_t width = 1, size_t but = SIZE_MAX) {
  if (x.size() != y.size()) fail(std::string(name) + " has another size");
  for (size_t i = 0; i < x.size(); i++) {
    const bool equal = memcmp(&x[i], &y[i], 4) == 0 || (std::isnan(x[i]) && std::isnan(y[i]));
    if (!equal && i / width != but)
      fail(std::string(name) + "[" + std::to_string(i) + "] differs: " + std::to_string(x[i]) + ", " + std::to_string(y[i]));
  }
}

// ---- Threads that do what they are given; `late` ones begin when the call has long returned.
class Threads {
 public:
  explicit Threads(size_t count, bool late = false) : late_(late) {
    for (size_t i = 1; i < count; i++) threads_.emplace_back([this] { serve(); });
    pool = {count, [this](std::function<void()> task) {
              std::lock_guard<std::mutex> lock(mutex_);
              tasks_.push_back(std::move(task));
              if (!late_) wake_.notify_one();
            }};
  }
  ~Threads() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      ends_ = true, late_ = false;
    }
    wake_.notify_all();
    for (auto& thread : threads_) thread.join();
  }
  Pool pool;

 private:
  void serve() {
    for (std::unique_lock<std::mutex> lock(mutex_);;) {
      wake_.wait(lock, [this] { return ends_ || (!late_ && !tasks_.empty()); });
      if (tasks_.empty()) break;
      auto task = std::move(tasks_.front());
      tasks_.pop_front();
      lock.unlock();
      task();
      lock.lock();
    }
#if defined(EMULATE_TILES)
    if (tiles::state.config.palette) fail("a thread of the pool was left with tiles");
#endif
  }
  bool late_, ends_ = false;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::function<void()>> tasks_;
  std::vector<std::thread> threads_;
};

// ---- A window and what comes out of it.
struct Window {
  size_t T, B, H, D = 0;  // D: of x, or 0, where z_x is given
  Floats x, w_x, z_x, w_h, bias, b_h, hidden0, cell0, initial_hidden, initial_cell, mask, scale, d_outputs, d_hidden, d_cell;
  std::vector<uint8_t> reset;
};
struct Results {
  Floats hidden, cell, gates, entered, d_z, d_inputs, d_hidden0, d_cell0, d_initial_hidden, d_initial_cell;
};

static Window random_window(int G, size_t T, size_t B, size_t H, bool all) {
  Window x{T, B, H};
  if (G == 4 && coin()) x.D = upto(40);
  if (x.D) x.x = normal(T * B * x.D), x.w_x = normal(x.D * G * H, 1 / std::sqrt((float)x.D));
  else x.z_x = normal(T * B * G * H);
  x.w_h = normal(H * G * H, 1 / std::sqrt((float)H)), x.bias = normal(G * H);
  x.hidden0 = normal(B * H), x.d_hidden = normal(B * H), x.d_outputs = normal(T * B * H);
  if (G == 3) x.b_h = normal(H);
  if (G == 4) x.cell0 = normal(B * H), x.d_cell = normal(B * H);
  if (all || coin()) {
    x.reset.resize(T * B);
    for (auto& value : x.reset) value = generator() % 4 == 0;
  }
  if (coin()) x.initial_hidden = normal(B * H);
  if (!x.initial_hidden.empty() && G == 4) x.initial_cell = normal(B * H);
  if (coin()) x.mask = one_of(B * H, {0, 1.5f});
  if (all || coin()) x.scale = one_of(T * B, {0, 0.5f, 1});
  return x;
}

template <int G, class Left> Results run(const Pool& pool, const Window& x) {
  const float unset = std::numeric_limits<float>::quiet_NaN();  // what is not written is found
  const size_t T = x.T, B = x.B, H = x.H, all = T * B * H, depth = padded<Left>(x.D + H);
  Results y;
  std::vector<Left> entered(T * B * depth, Left(0x7fc0));
  y.hidden.assign(all, unset), y.cell.assign(G == 4 ? all : 0, unset), y.gates.assign(4 * all, unset);
  Forward f{{T, B, H}, x.D, given(x.x), given(x.w_x), given(x.z_x)};
  f.w_h = x.w_h.data(), f.bias = x.bias.data(), f.b_h = given(x.b_h), f.hidden0 = x.hidden0.data(), f.cell0 = given(x.cell0);
  f.reset = x.reset.empty() ? nullptr : (const bool*)x.reset.data();
  f.initial_hidden = given(x.initial_hidden), f.initial_cell = given(x.initial_cell), f.mask = given(x.mask);
  f.hidden = y.hidden.data(), f.cell = wanted(y.cell), f.gates = y.gates.data(), f.entered = entered.data();
  forward<G, Left>(pool, f);
  for (Left value : entered) y.entered.push_back(std::is_same_v<Left, float> ? value : widened((bf16)value));

  y.d_z.assign(G * all, unset), y.d_inputs.assign(G == 3 ? G * all : 0, unset);
  y.d_hidden0.assign(B * H, unset), y.d_cell0.assign(G == 4 ? B * H : 0, unset);
  y.d_initial_hidden.assign(x.initial_hidden.size(), unset), y.d_initial_cell.assign(x.initial_cell.size(), unset);
  Backward b{{T, B, H}};
  b.d_outputs = x.d_outputs.data(), b.d_hidden = x.d_hidden.data(), b.d_cell = given(x.d_cell), b.w_h = f.w_h;
  b.gates = f.gates, b.states = G == 4 ? f.cell : f.hidden, b.first = G == 4 ? f.cell0 : f.hidden0;
  b.reset = f.reset, b.scale = given(x.scale), b.initial = G == 4 ? f.initial_cell : f.initial_hidden, b.mask = f.mask;
  b.d_z = y.d_z.data(), b.d_inputs = wanted(y.d_inputs), b.d_hidden0 = y.d_hidden0.data(), b.d_cell0 = wanted(y.d_cell0);
  b.d_initial_hidden = wanted(y.d_initial_hidden), b.d_initial_cell = wanted(y.d_initial_cell);
  backward<G, Left>(pool, b);
  return y;
}

// Compares all results; of row `b` not those of step `t` and, if `leaves`, not the initial state's.
static void same_results(const Results& x, const Results& y, const Window& w, size_t t = SIZE_MAX, size_t b = 0, bool leaves = false) {
  const size_t step = t == SIZE_MAX ? t : t * w.B + b, row = leaves ? b : SIZE_MAX, rows = w.T * w.B;
  same("hidden", x.hidden, y.hidden, w.H, step), same("cell", x.cell, y.cell, w.H, step);
  same("gates", x.gates, y.gates, 4 * w.H, step), same("entered", x.entered, y.entered, x.entered.size() / rows, step);
  same("d_z", x.d_z, y.d_z, x.d_z.size() / rows, step), same("d_inputs", x.d_inputs, y.d_inputs, 3 * w.H, step);
  same("d_hidden0", x.d_hidden0, y.d_hidden0), same("d_cell0", x.d_cell0, y.d_cell0);
  same("d_initial_hidden", x.d_initial_hidden, y.d_initial_hidden, w.H, row);
  same("d_initial_cell", x.d_initial_cell, y.d_initial_cell, w.H, row);
}

// ---- The equations.
template <class Left> float operand(float x) { return std::is_same_v<Left, float> ? x : widened(rounded(x)); }
static double logistic(double x) { return 1 / (1 + std::exp(-x)); }
static bool resets(const Window& w, size_t t, size_t b) { return !w.reset.empty() && w.reset[t * w.B + b]; }
static float before(const Window& w, const Floats& initial, const Floats& first, const Floats& states, size_t t, size_t b, size_t j) {
  if (resets(w, t, b)) return initial.empty() ? 0 : initial[b * w.H + j];
  return t ? states[((t - 1) * w.B + b) * w.H + j] : first[b * w.H + j];
}

template <int G, class Left> void check_forward(const Window& w, const Results& y) {
  const size_t H = w.H, D = w.D, depth = padded<Left>(D + H);
  for (size_t t = 0; t < w.T; t++)
    for (size_t b = 0; b < w.B; b++) {
      const size_t row = t * w.B + b;
      const float* entered = y.entered.data() + row * depth;
      Doubles z(G * H);
      for (size_t k = 0; k < depth; k++) {
        const size_t i = k - D;  // of the hidden state
        float value = k < D ? w.x[row * D + k] : i < H ? before(w, w.initial_hidden, w.hidden0, y.hidden, t, b, i) : 0;
        if (k >= D && i < H && !w.mask.empty()) value *= w.mask[b * H + i];
        if (entered[k] != operand<Left>(value)) close("entered exactly", row * depth + k, entered[k], std::nan(""));
        const float* weights = k < D ? w.w_x.data() + k * G * H : i < H ? w.w_h.data() + i * G * H : nullptr;
        for (size_t j = 0; weights && j < G * H; j++) z[j] += double(entered[k]) * operand<Left>(weights[j]);
      }
      for (size_t j = 0; j < H; j++) {
        auto in = [&](int q) { return (D ? 0 : w.z_x[row * G * H + q * H + j]) + w.bias[q * H + j]; };
        double gate[4], hidden;
        if (G == 4) {
          for (int q = 0; q < 4; q++) gate[q] = q == 2 ? std::tanh(z[q * H + j] + in(q)) : logistic(z[q * H + j] + in(q));
          const double cell = gate[1] * before(w, w.initial_cell, w.cell0, y.cell, t, b, j) + gate[0] * gate[2];
          close("cell", row * H + j, y.cell[row * H + j], cell);
          hidden = gate[3] * std::tanh(cell);
        } else {
          gate[0] = logistic(z[j] + in(0)), gate[1] = logistic(z[H + j] + in(1)), gate[3] = z[2 * H + j] + w.b_h[j];
          gate[2] = std::tanh(in(2) + gate[0] * gate[3]);
          hidden = (1 - gate[1]) * gate[2] + gate[1] * before(w, w.initial_hidden, w.hidden0, y.hidden, t, b, j);
        }
        for (int q = 0; q < 4; q++) close("gates", (row * 4 + q) * H + j, y.gates[(row * 4 + q) * H + j], gate[q]);
        close("hidden", row * H + j, y.hidden[row * H + j], hidden);
      }
    }
}

template <int G, class Left> void check_backward(const Window& w, const Results& y) {
  const size_t H = w.H;
  for (size_t b = 0; b < w.B; b++) {
    Doubles dh(H), dc(H), initial_h(H), initial_c(H);
    for (size_t j = 0; j < H; j++) dh[j] = w.d_hidden[b * H + j], dc[j] = G == 4 ? w.d_cell[b * H + j] : 0;
    for (size_t t = w.T; t-- > 0;) {
      const size_t row = t * w.B + b;
      const float* d_z = y.d_z.data() + row * G * H;
      for (size_t j = 0; j < H; j++) {
        const float* gate = y.gates.data() + row * 4 * H + j;
        double d[4], d_n = 0;
        dh[j] += w.d_outputs[row * H + j];
        if (G == 4) {
          const double i = gate[0], f = gate[H], g = gate[2 * H], o = gate[3 * H], shown = std::tanh(y.cell[row * H + j]);
          dc[j] += dh[j] * o * (1 - shown * shown);
          d[0] = dc[j] * g * i * (1 - i), d[2] = dc[j] * i * (1 - g * g), d[3] = dh[j] * shown * o * (1 - o);
          d[1] = dc[j] * before(w, w.initial_cell, w.cell0, y.cell, t, b, j) * f * (1 - f);
          dc[j] *= f, dh[j] = 0;
        } else {
          const double r = gate[0], u = gate[H], n = gate[2 * H], q = gate[3 * H];
          d_n = dh[j] * (1 - u) * (1 - n * n);
          d[0] = d_n * q * r * (1 - r), d[2] = d_n * r;
          d[1] = dh[j] * (before(w, w.initial_hidden, w.hidden0, y.hidden, t, b, j) - n) * u * (1 - u);
          for (int k = 0; k < 3; k++) close("d_inputs", row, y.d_inputs[(row * 3 + k) * H + j], k < 2 ? d[k] : d_n);
          dh[j] *= u;
        }
        for (int q = 0; q < G; q++) close("d_z", (row * G + q) * H + j, d_z[q * H + j], d[q]);
      }
      const double scale = w.scale.empty() ? 1 : w.scale[row];
      for (size_t j = 0; j < H; j++) {
        double sum = 0;
        for (size_t m = 0; m < G * H; m++) sum += double(operand<Left>(d_z[m])) * operand<Left>(w.w_h[j * G * H + m]);
        dh[j] += sum * (w.mask.empty() ? 1 : w.mask[b * H + j]);
        if (resets(w, t, b)) initial_h[j] += dh[j], initial_c[j] += dc[j], dh[j] = dc[j] = 0;
        else dh[j] = scale > 0 ? scale * dh[j] : 0, dc[j] = scale > 0 ? scale * dc[j] : 0;
      }
    }
    for (size_t j = 0; j < H; j++) {
      close("d_hidden0", b * H + j, y.d_hidden0[b * H + j], dh[j]);
      if (G == 4) close("d_cell0", b * H + j, y.d_cell0[b * H + j], dc[j]);
      if (!w.initial_hidden.empty()) close("d_initial_hidden", b * H + j, y.d_initial_hidden[b * H + j], initial_h[j]);
      if (!w.initial_cell.empty()) close("d_initial_cell", b * H + j, y.d_initial_cell[b * H + j], initial_c[j]);
    }
  }
}

// ---- The cases.
// NaN or infinity in one step of one row, which a reset ends and which a reset or a scale of 0 began:
// no other number changes by a bit.
template <int G, class Left> void check_poison(const Pool& pool, size_t T, size_t B, size_t H) {
  Window w = random_window(G, T, B, H, true);
  const size_t b = upto(B) - 1, t = upto(T) - 1;
  const bool begins = coin();
  w.reset[t * B + b] = begins;
  if (!begins) w.scale[t * B + b] = 0;
  if (t + 1 < T) w.reset[(t + 1) * B + b] = 1;
  const Results clean = run<G, Left>(pool, w);
  const float poison = coin() ? std::numeric_limits<float>::infinity() : std::nanf("");
  auto spoil = [&](Floats& x, size_t row, size_t width) {
    for (size_t i = 0; i < width && !x.empty(); i++)
      if (i == 0 || coin()) x[row * width + i] = poison;
  };
  spoil(w.z_x, t * B + b, G * H), spoil(w.x, t * B + b, w.D), spoil(w.d_outputs, t * B + b, H);
  if (t + 1 == T) spoil(w.d_hidden, b, H), spoil(w.d_cell, b, H);
  if (t == 0 && begins) spoil(w.hidden0, b, H), spoil(w.cell0, b, H);
  same_results(clean, run<G, Left>(pool, w), w, t, b, begins);
}

template <int G, class Left> void check_window(const std::vector<Pool>& pools) {
  size_t T, B, H;
  auto size = [] { return upto(generator() % 3 ? 70 : 2); };  // few rows have a product of their own
  do T = size(), B = size(), H = upto(70); while (T * B * H * H > 3e5);
  what = std::string(G == 4 ? "LSTM" : "GRU") + (std::is_same_v<Left, float> ? " float32" : " bfloat16") + " T=" +
         std::to_string(T) + " B=" + std::to_string(B) + " H=" + std::to_string(H);
  const Window w = random_window(G, T, B, H, false);
  const Results y = run<G, Left>(pools[0], w);
  check_forward<G, Left>(w, y);
  check_backward<G, Left>(w, y);
  for (size_t i = 1; i < pools.size(); i++) same_results(y, run<G, Left>(pools[i], w), w);
  std::vector<std::thread> callers;  // several calls at once share a pool
  for (int i = 0; i < 3; i++) callers.emplace_back([&] { same_results(y, run<G, Left>(pools[1], w), w); });
  for (auto& caller : callers) caller.join();
  check_poison<G, Left>(pools[1], T, B, H);
}

template <class Left> void check_product(const std::vector<Pool>& pools) {
  const size_t M = coin() ? upto(70) : upto(7), K = coin() ? upto(70) : upto(2100), N = upto(150);
  const bool transpose_a = coin(), transpose_b = coin();
  const bool narrow = !std::is_same_v<Left, float> && transpose_a && coin();  // rows rounded already, padded
  what = "product" + std::string(std::is_same_v<Left, float> ? " float32" : " bfloat16") + " M=" + std::to_string(M) + " K=" +
         std::to_string(K) + " N=" + std::to_string(N) + (transpose_a ? " a^T" : "") + (transpose_b ? " b^T" : "");
  const Floats a = normal(M * K, 0.3f), b = normal(K * N, 0.3f);
  std::vector<Floats> c;
  const size_t stride = narrow ? padded<bf16>(M) : transpose_a ? M : K;
  std::vector<bf16> rounded_a(narrow ? K * stride : 0);
  for (size_t k = 0; narrow && k < K; k++)
    for (size_t m = 0; m < M; m++) rounded_a[k * stride + m] = rounded(a[k * M + m]);
  const size_t split = coin() && M > 1 ? upto(M - 1) : M;  // the result in two arrays
  const void* left = narrow ? (const void*)rounded_a.data() : a.data();
  for (const Pool& pool : pools) {
    Floats first(split * N, std::nanf("")), more((M - split) * N, std::nanf(""));
    product<Left>(pool, Product{M, K, N, left, stride, narrow, b.data(), transpose_a, transpose_b, first.data(), more.data(), split});
    first.insert(first.end(), more.begin(), more.end());
    c.push_back(first);
    same("c", c[0], c.back());
  }
  if (!transpose_a) {  // the bits of a row do not depend on how many others there are
    Floats first(N);
    product<Left>(pools[0], Product{1, K, N, a.data(), K, false, b.data(), false, transpose_b, first.data()});
    same("the first row", first, Floats(c[0].begin(), c[0].begin() + N));
  }
  for (size_t m = 0; m < M; m++)
    for (size_t n = 0; n < N; n++) {
      double sum = 0;
      for (size_t k = 0; k < K; k++)
        sum += double(operand<Left>(a[transpose_a ? k * M + m : m * K + k])) * operand<Left>(b[transpose_b ? n * K + k : k * N + n]);
      close("c", m * N + n, c[0][m * N + n], sum);
    }
}

void check_squares(const std::vector<Pool>& pools) {
  what = "the sum of squares";
  const Floats x = normal(upto(200000));
  double sum = 0;
  for (float value : x) sum += (double)value * value;
  const float first = sum_of_squares(pools[0], x.data(), x.size());
  close("sum", 0, first, sum);
  for (const Pool& pool : pools) same("sum", {first}, {sum_of_squares(pool, x.data(), x.size())});
}

// No rows, no units, no columns: nothing is touched. A sum of no products is 0.
template <class Left> void check_empty(const Pool& pool) {
  what = "empty arrays";
  run<4, Left>(pool, random_window(4, 3, 0, 5, true)), run<3, Left>(pool, random_window(3, 3, 5, 0, true));
  for (bool transposed : {false, true}) {
    Floats c(6, std::nanf("")), some(6);
    product<Left>(pool, Product{2, 0, 3, nullptr, 0, false, nullptr, transposed, transposed, c.data()});
    same("c", c, Floats(6));
    product<Left>(pool, Product{0, 2, 3, nullptr, 2, false, some.data(), transposed, transposed, nullptr});
    product<Left>(pool, Product{3, 2, 0, some.data(), 2, false, nullptr, transposed, transposed, nullptr});
  }
}

int main(int count, char** arguments) {
  if (count != 3) return printf("usage: driver SEED CASES\n"), 2;
  generator.seed(atoi(arguments[1]));
#if defined(EMULATE_TILES)
  tiles::Config mine{1};
  mine.rows[5] = 3, mine.bytes[5] = 12;
  tiles::load_config(&mine);
#endif
  {
    Threads alone(1), three(3), late(4, true), crowd(9);
    const std::vector<Pool> pools{alone.pool, three.pool, late.pool, crowd.pool};
    for (int i = 0; i < atoi(arguments[2]); i++) {
      check_window<4, float>(pools);
      check_window<3, bf16>(pools);
      check_window<4, bf16>(pools);
      check_window<3, float>(pools);
      for (int k = 0; k < 3; k++) check_product<float>(pools), check_product<bf16>(pools);
      check_squares(pools);
    }
    check_empty<float>(pools[1]), check_empty<bf16>(pools[1]);
  }
  what = "at the end";
#if defined(EMULATE_TILES)
  if (memcmp(&mine, &tiles::state.config, 64)) fail("the caller's tiles are not put back");
#endif
  if (const char* wrong = self_check()) fail(wrong);
  printf("%s is right\n", PATH);
}
