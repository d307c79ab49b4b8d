// Memory for torch's large tensors on the CPU (see allocator.py, which compiles and installs this).
//
// The C library cuts freed blocks up for smaller ones, so that after some updates half of the memory of a training run is
// holes that no tensor fits in. Here a block stays whole: it has one of eight sizes between a power of two and the next,
// or more where they would be further apart than large pages, and serves tensors of about that size. Where none fits,
// others are taken apart, and their pages are moved to the addresses of a new one: the gradients of an update make room
// for the activations of the next one, and pages that the system gives anew would have to be zeroed first. Large blocks
// are made of large pages, of which the processor looks up fewer; what does not fill one is made of small pages.
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/alloc_cpu.h>
#include <pthread.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <mutex>
#include <unordered_map>
#include <vector>

namespace {

constexpr size_t kLeast = 256 << 10;  // bytes; smaller tensors are the C library's
constexpr size_t kLarge = 4 << 20;
constexpr size_t kPage = 4096, kLargePage = 2 << 20;

enum Kind { kSmallPages, kLargePages };

struct Pages {  // a mapping of its own, so that they can be moved
  char* begin;
  size_t bytes;
};

struct Block {
  char* begin;
  size_t bytes;
  std::vector<Pages> pages[2];  // by kind
};

// Never destroyed: tensors are freed until the very end of a process.
std::mutex& lock = *new std::mutex;
auto& used = *new std::unordered_map<void*, Block>;
auto& spare = *new std::multimap<size_t, Block>;  // by size
auto* const loose = new std::vector<Pages>[2];    // of blocks taken apart, by kind
size_t loose_bytes[2] = {0, 0}, in_use = 0, most = 0, held = 0;

size_t rounded(size_t bytes) {
  size_t power = kLeast;
  while (power * 2 <= bytes) power *= 2;
  const size_t step = std::min(power / 8, kLargePage);
  return (bytes + step - 1) / step * step;
}

void loosen(Kind kind, const Pages& pages) {
  loose[kind].push_back(pages);
  loose_bytes[kind] += pages.bytes;
}

void take_apart(std::multimap<size_t, Block>::iterator block) {
  for (const Kind kind : {kSmallPages, kLargePages})
    for (const Pages& pages : block->second.pages[kind]) loosen(kind, pages);
  spare.erase(block);
}

// Some loose pages, `bytes` at most, which are loose no more.
Pages pick(Kind kind, size_t bytes) {
  Pages& last = loose[kind].back();
  const size_t picked = std::min(bytes, last.bytes);
  last.bytes -= picked;
  loose_bytes[kind] -= picked;
  const Pages found = {last.begin + last.bytes, picked};
  if (!last.bytes) loose[kind].pop_back();
  return found;
}

void give_back(const Pages& pages) {
  munmap(pages.begin, pages.bytes);
  held -= pages.bytes;
}

// Moves loose pages to a block, from `at` to `end` at most; where that ended. Large pages become small ones if need be.
size_t move(Block& block, size_t at, size_t end, Kind kind) {
  while (at < end) {
    if (kind == kSmallPages && !loose_bytes[kSmallPages] && loose_bytes[kLargePages])
      loosen(kSmallPages, pick(kLargePages, kLargePage));
    if (!loose_bytes[kind]) break;
    const Pages from = pick(kind, end - at);
    char* to = block.begin + at;
    if (mremap(from.begin, from.bytes, from.bytes, MREMAP_MAYMOVE | MREMAP_FIXED, to) == MAP_FAILED) {
      give_back(from);  // too many mappings
      continue;
    }
    block.pages[kind].push_back({to, from.bytes});
    at += from.bytes;
  }
  return at;
}

// Asks the system for the pages of a block from `at` to `end`.
bool map(Block& block, size_t at, size_t end, Kind kind) {
  if (at >= end) return true;
  char* to = block.begin + at;
  const int how = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
  if (mmap(to, end - at, PROT_READ | PROT_WRITE, how, -1, 0) == MAP_FAILED) return false;
  if (kind == kLargePages) madvise(to, end - at, MADV_HUGEPAGE);
  block.pages[kind].push_back({to, end - at});
  held += end - at;
  return true;
}

// Addresses for `size` bytes, where large pages can begin.
char* reserve(size_t size) {
  const size_t more = size >= kLarge ? kLargePage : 0;
  void* found = mmap(nullptr, size + more, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (found == MAP_FAILED) return nullptr;
  char* whole = static_cast<char*>(found);
  const size_t before = more ? (more - reinterpret_cast<size_t>(whole) % more) % more : 0;
  if (before) munmap(whole, before);
  if (before < more) munmap(whole + before + size, more - before);
  return whole + before;
}

// A new block, of loose pages where there are some: large ones first, so that they stay what they are.
bool make(Block& block, size_t size) {
  block.begin = reserve(size);
  block.bytes = size;
  if (!block.begin) return false;
  const size_t large = size >= kLarge ? size / kLargePage * kLargePage : 0;
  size_t at = move(block, 0, large, kLargePages);
  const size_t rest = loose_bytes[kSmallPages] + loose_bytes[kLargePages];
  const size_t missing = size - at - std::min(size - at, rest);
  const size_t fresh = at + std::min(large - at, missing / kLargePage * kLargePage);
  bool made = map(block, at, fresh, kLargePages);
  at = move(block, fresh, size, kSmallPages);
  made = made && map(block, at, size, kSmallPages);
  if (made) return true;
  for (const auto& kind : block.pages)
    for (const Pages& pages : kind) held -= pages.bytes;
  munmap(block.begin, size);
  return false;
}

// Takes spare blocks apart, the largest first, before more is held than ever was in use at once.
void make_room(size_t size) {
  const size_t limit = std::max(most, in_use + size);
  while (!spare.empty()) {
    const size_t missing = size - std::min(size, loose_bytes[kSmallPages] + loose_bytes[kLargePages]);
    if (!missing || held + missing <= limit) return;
    take_apart(std::prev(spare.end()));
  }
}

void* take(size_t bytes) {
  const std::lock_guard<std::mutex> guard(lock);
  const size_t size = rounded(bytes);
  Block block;
  const auto fitting = spare.lower_bound(size);
  if (fitting != spare.end() && fitting->first <= size + size / 4) {
    block = std::move(fitting->second);
    spare.erase(fitting);
  } else {
    make_room(size);
    if (!make(block, size)) return nullptr;
  }
  in_use += block.bytes;
  most = std::max(most, in_use);
  void* begin = block.begin;
  used.emplace(begin, std::move(block));
  return begin;
}

void give(void* data) {
  if (reinterpret_cast<size_t>(data) % kPage == 0) {  // ours begin with a page
    const std::lock_guard<std::mutex> guard(lock);
    const auto block = used.find(data);
    if (block != used.end()) {
      in_use -= block->second.bytes;
      spare.emplace(block->second.bytes, std::move(block->second));
      used.erase(block);
      return;
    }
  }
  c10::free_cpu(data);
}

struct Keeping final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* data = bytes < kLeast ? nullptr : take(bytes);
    if (!data) data = c10::alloc_cpu(bytes);  // which knows how to complain
    return {data, data, &give, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &give; }
  void copy_data(void* to, const void* from, size_t count) const override { std::memcpy(to, from, count); }
};

}  // namespace

// All tensors that are made from now on.
extern "C" void trivium_install_allocator() {
  pthread_atfork([] { lock.lock(); }, [] { lock.unlock(); }, [] { lock.unlock(); });
  c10::SetCPUAllocator(new Keeping, 1);
}

// Gives what is spare to the system.
extern "C" void trivium_trim() {
  const std::lock_guard<std::mutex> guard(lock);
  while (!spare.empty()) take_apart(spare.begin());
  for (const Kind kind : {kSmallPages, kLargePages})
    while (loose_bytes[kind]) give_back(pick(kind, loose_bytes[kind]));
  most = in_use;
}
