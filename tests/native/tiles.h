// AMX tiles in plain C++, so that the code for them is tested on processors that have none.
//
// What Intel's manual says an instruction refuses, ends the program here. Included before kernels.cc.
#pragma once
#include <immintrin.h>
#include <sys/syscall.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

#undef SYS_arch_prctl  // nothing to ask Linux for
#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps

namespace tiles {

struct Config {
  uint8_t palette, start_row, reserved[14];
  uint16_t bytes[16];  // of a row
  uint8_t rows[16];
};
static_assert(sizeof(Config) == 64);

struct State {
  Config config{};
  uint8_t data[8][16][64]{};
};
inline thread_local State state;

inline void require(bool holds, const char* rule) {
  if (holds) return;
  printf("a tile instruction would fault: %s\n", rule);
  exit(1);
}
inline void configured(int k) {
  require(state.config.palette == 1, "tiles are not configured");
  require(k >= 0 && k < 8 && state.config.rows[k] && state.config.bytes[k], "this tile has no size");
}
inline void release() { state = State{}; }
inline void load_config(const void* from) {
  Config wanted;
  memcpy(&wanted, from, 64);
  require(wanted.palette <= 1, "an unknown palette");
  if (wanted.palette == 0) return release();
  for (uint8_t x : wanted.reserved) require(x == 0, "a reserved byte of the configuration is not 0");
  for (int k = 0; k < 16; k++) {
    require(wanted.rows[k] <= 16 && wanted.bytes[k] <= 64, "a tile is at most 16 rows of 64 bytes");
    require(k < 8 || (!wanted.rows[k] && !wanted.bytes[k]), "there are 8 tiles");
    require((wanted.rows[k] == 0) == (wanted.bytes[k] == 0), "a tile has rows but no bytes, or the reverse");
  }
  state = State{};
  state.config = wanted;
}
inline void store_config(void* to) { memcpy(to, &state.config, 64); }
inline void zero(int k) {
  configured(k);
  memset(state.data[k], 0, sizeof state.data[k]);
}
inline void load(int k, const void* from, size_t stride) {
  zero(k);
  for (int r = 0; r < state.config.rows[k]; r++)
    memcpy(state.data[k][r], (const char*)from + r * stride, state.config.bytes[k]);
}
inline void store(int k, void* to, size_t stride) {
  configured(k);
  for (int r = 0; r < state.config.rows[k]; r++)
    memcpy((char*)to + r * stride, state.data[k][r], state.config.bytes[k]);
}
inline float widened(const uint8_t* from) {
  const uint32_t bits = (uint32_t)from[0] << 16 | (uint32_t)from[1] << 24;
  float value;
  memcpy(&value, &bits, 4);
  return value;
}
// c[r][j] += a[r][2p] * b[p][j][0] + a[r][2p + 1] * b[p][j][1], over the pairs p
inline void multiply(int c, int a, int b) {
  for (int k : {a, b, c}) configured(k);
  require(a != b && b != c && a != c, "a product needs three tiles");
  const Config& is = state.config;
  require(is.rows[c] == is.rows[a] && is.bytes[c] == is.bytes[b] && is.bytes[a] == 4 * is.rows[b],
          "the sizes of a product's tiles do not belong together");
  for (int r = 0; r < is.rows[c]; r++)
    for (int p = 0; p < is.rows[b]; p++) {
      const float even = widened(state.data[a][r] + 4 * p), odd = widened(state.data[a][r] + 4 * p + 2);
      for (int j = 0; j < is.bytes[c] / 4; j++) {
        float sum;
        memcpy(&sum, state.data[c][r] + 4 * j, 4);
        const uint8_t* pair = state.data[b][p] + 4 * j;
        sum += even * widened(pair) + odd * widened(pair + 2);
        memcpy(state.data[c][r] + 4 * j, &sum, 4);
      }
    }
}

#if !defined(__AVX512BF16__)  // the tiles' panels are those of `vdpbf16ps`
#define __AVX512BF16__ 1
inline __m512 multiply_pairs(__m512 sum, __m512bh a, __m512bh b) {
  const __m512i x = (__m512i)a, y = (__m512i)b, odd = _mm512_set1_epi32((int)0xffff0000);
  auto product = [](__m512i p, __m512i q, __m512 s) { return _mm512_fmadd_ps((__m512)p, (__m512)q, s); };
  sum = product(_mm512_and_si512(x, odd), _mm512_and_si512(y, odd), sum);
  return product(_mm512_slli_epi32(x, 16), _mm512_slli_epi32(y, 16), sum);
}
#define _mm512_dpbf16_ps tiles::multiply_pairs
#endif

}  // namespace tiles

#define __AMX_BF16__ 1
#define _tile_loadconfig tiles::load_config
#define _tile_storeconfig tiles::store_config
#define _tile_release tiles::release
#define _tile_zero tiles::zero
#define _tile_loadd tiles::load
#define _tile_stored tiles::store
#define _tile_dpbf16ps tiles::multiply
