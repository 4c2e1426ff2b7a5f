// Memory that is kept between calls, and work that is shared with the threads of a pool.

#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <new>
#include <thread>
#include <utility>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace tbptt {

// Memory that is kept for the next call: a page that is new costs as much as packing it. Where the
// list is in use, as for ever in a process that was forked meanwhile, memory is not kept.
class Scratch {
 public:
  explicit Scratch(size_t bytes) : bytes_(std::max<size_t>(64, (bytes + 63) / 64 * 64)) {
    if (std::unique_lock<std::mutex> lock(mutex(), std::try_to_lock); lock) {
      auto& all = free_blocks();
      auto fits = std::find_if(all.begin(), all.end(), [&](auto& b) { return b.second >= bytes_; });
      if (fits != all.end()) {
        data_ = fits->first, bytes_ = fits->second;
        all.erase(fits);
        return;
      }
    }
    data_ = std::aligned_alloc(64, bytes_);
    if (!data_) throw std::bad_alloc();
  }
  ~Scratch() {
    std::unique_lock<std::mutex> lock(mutex(), std::try_to_lock);
    if (!lock) {
      std::free(data_);
      return;
    }
    auto& all = free_blocks();
    all.emplace_back(data_, bytes_);
    if (all.size() <= 16) return;
    auto least = std::min_element(all.begin(), all.end(), [](auto& a, auto& b) { return a.second < b.second; });
    std::free(least->first);
    all.erase(least);
  }
  Scratch(const Scratch&) = delete;
  template <class T> T* as() const { return (T*)data_; }

 private:
  static std::mutex& mutex() { static auto* m = new std::mutex; return *m; }
  static std::vector<std::pair<void*, size_t>>& free_blocks() {
    static auto* all = new std::vector<std::pair<void*, size_t>>;
    return *all;
  }
  void* data_;
  size_t bytes_;
};

struct Pool {
  size_t threads;
  std::function<void(std::function<void()>)> schedule;
};

using Work = std::function<void(size_t phase, size_t chunk)>;

// Phases of work, one after the other, each of `chunks` independent pieces, by the caller and by
// those of the pool's threads that come to help. Nobody waits for a thread that has not started, so
// a pool that is busy delays nothing and cannot cause a deadlock. Each thread begins with a region
// of its own, the same in all phases, whose weights are in its cache; then it takes what is left.
class Phases {
 public:
  Phases(size_t phases, size_t chunks, size_t regions, Work work)
      : phases_(phases), chunks_(chunks), regions_(regions), work_(std::move(work)),
        next_(new std::atomic<uint32_t>[phases * regions]), done_(new std::atomic<uint32_t>[phases]) {
    for (size_t i = 0; i < phases * regions; i++) next_[i] = 0;
    for (size_t i = 0; i < phases; i++) done_[i] = 0;
  }
  bool failed() const { return failed_; }
  void join(size_t mine) {
    for (size_t s = 0; s < phases_; s++) {
      for (size_t i = 0; i < regions_; i++) take(s, (mine + i) % regions_);
      for (int spins = 0; done_[s].load(std::memory_order_acquire) < chunks_; spins++)
        if (spins > 2000) std::this_thread::yield();  // whoever has the last piece may need this core
        else pause();
    }
  }

 private:
  void take(size_t s, size_t region) {
    const size_t first = chunks_ * region / regions_, count = chunks_ * (region + 1) / regions_ - first;
    auto& next = next_[s * regions_ + region];
    while (next.load(std::memory_order_relaxed) < count) {
      const size_t i = next.fetch_add(1, std::memory_order_relaxed);
      if (i >= count) return;
      try {
        work_(s, first + i);
      } catch (...) {  // out of memory; no exception may end a thread of XLA
        failed_ = true;
      }
      done_[s].fetch_add(1, std::memory_order_release);
    }
  }
  static void pause() {
#if defined(__x86_64__)
    _mm_pause();
#endif
  }
  size_t phases_, chunks_, regions_;
  std::atomic<bool> failed_{false};
  Work work_;
  std::unique_ptr<std::atomic<uint32_t>[]> next_, done_;
};

// How many threads share a phase of so many operations: fewer are done before a helper has woken up.
#if !defined(TBPTT_SHARED_FROM)  // tests share small ones too
#define TBPTT_SHARED_FROM 2e6
#endif
inline size_t regions_for(const Pool& pool, double operations) {
  return operations < TBPTT_SHARED_FROM ? 1 : std::max<size_t>(1, pool.threads);
}

inline void run(const Pool& pool, size_t regions, size_t phases, size_t chunks, Work work) {
  regions = std::min(regions, chunks);
  if (regions <= 1) {
    for (size_t s = 0; s < phases; s++)
      for (size_t i = 0; i < chunks; i++) work(s, i);
    return;
  }
  auto shared = std::make_shared<Phases>(phases, chunks, regions, std::move(work));
  for (size_t i = 1; i < regions; i++) pool.schedule([shared, i] { shared->join(i); });
  shared->join(0);
  if (shared->failed()) throw std::bad_alloc();
}

}  // namespace tbptt
