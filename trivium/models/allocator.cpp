// Memory for torch's large tensors on the CPU (see allocator.py, which compiles and installs this).
//
// The C library cuts freed blocks up for smaller ones, so that after some updates half of the memory of a training run is
// holes that no tensor fits in. Here a block stays whole: it has one of eight sizes between a power of two and the next,
// and serves tensors of about that size until it is given back. Large ones ask for large pages, of which the processor
// looks up fewer.
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

namespace {

constexpr size_t kLeast = 256 << 10;  // bytes; smaller tensors are the C library's
constexpr size_t kLarge = 4 << 20;
constexpr size_t kPage = 4096;
constexpr double kSlack = 1.02;  // of the most that was in use at once, may be held

// Never destroyed: tensors are freed until the very end of a process.
std::mutex& lock = *new std::mutex;
auto& used = *new std::unordered_map<void*, size_t>;
auto& spare = *new std::multimap<size_t, void*>;  // by size
size_t in_use = 0, most = 0, held = 0;

size_t rounded(size_t bytes) {
  size_t power = kLeast;
  while (power * 2 <= bytes) power *= 2;
  const size_t step = power / 8;
  return (bytes + step - 1) / step * step;
}

void give_back(std::multimap<size_t, void*>::iterator block) {
  munmap(block->second, block->first);
  held -= block->first;
  spare.erase(block);
}

void* take(size_t bytes) {
  const std::lock_guard<std::mutex> guard(lock);
  size_t size = rounded(bytes);
  void* found = nullptr;
  const auto block = spare.lower_bound(size);
  if (block != spare.end() && block->first <= size + size / 4) {
    size = block->first;
    found = block->second;
    spare.erase(block);
  } else {
    // What is spare goes, the largest first, before more than the slack is held.
    while (!spare.empty() && held + size > kSlack * std::max(most, in_use + size)) give_back(std::prev(spare.end()));
    found = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (found == MAP_FAILED) return nullptr;
    if (size >= kLarge) madvise(found, size, MADV_HUGEPAGE);
    held += size;
  }
  used[found] = size;
  in_use += size;
  most = std::max(most, in_use);
  return found;
}

void give(void* data) {
  if (reinterpret_cast<size_t>(data) % kPage == 0) {  // ours begin with a page
    const std::lock_guard<std::mutex> guard(lock);
    const auto block = used.find(data);
    if (block != used.end()) {
      in_use -= block->second;
      spare.emplace(block->second, data);
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
  while (!spare.empty()) give_back(spare.begin());
  most = in_use;
}
