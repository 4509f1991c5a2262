// Combines the lanes' accesses to requests, and exports the C functions that tests/speed_model.py
// calls.
#include "trace.hpp"

#include <dlfcn.h>

#include <algorithm>
#include <memory>
#include <set>

#include "fiber.hpp"

namespace stripctx::simt {

constinit thread_local bool tracing = false;

Tracer& tracer() {
  static thread_local std::unique_ptr<Tracer> instance;
  if (!instance) instance = std::make_unique<Tracer>();
  return *instance;
}

namespace {

constexpr int kSector = 32, kBanks = 32, kWord = 4;

int64_t sectors(const uintptr_t* address, uint32_t lanes, int bytes) {
  std::set<uintptr_t> touched;
  for (int lane = 0; lane < 32; ++lane) {
    if (lanes >> lane & 1) touched.insert(address[lane] / kSector);
  }
  return static_cast<int64_t>(touched.size()) * std::max(1, bytes / kSector);
}

// Wavefronts of a request to shared memory. It is served for a whole, a half or a quarter warp at a
// time, depending on the width.
int64_t turns(const uintptr_t* address, uint32_t lanes, int bytes) {
  const int together = bytes <= 4 ? 32 : bytes == 8 ? 16 : 8, words = std::max(1, bytes / kWord);
  int64_t sum = 0;
  for (int first = 0; first < 32; first += together) {
    std::set<uintptr_t> of_bank[kBanks];
    for (int lane = first; lane < first + together; ++lane) {
      if (!(lanes >> lane & 1)) continue;
      for (int word = 0; word < words; ++word) {
        const uintptr_t index = address[lane] / kWord + word;
        of_bank[index % kBanks].insert(index);
      }
    }
    size_t most = 0;
    for (const auto& bank : of_bank) most = std::max(most, bank.size());
    sum += static_cast<int64_t>(most);
  }
  return sum;
}

// Wavefronts if there were no bank conflicts.
int64_t fewest_turns(const uintptr_t* address, uint32_t lanes, int bytes) {
  const int words = std::max(1, bytes / kWord);
  std::set<uintptr_t> all;
  for (int lane = 0; lane < 32; ++lane) {
    if (!(lanes >> lane & 1)) continue;
    for (int word = 0; word < words; ++word) all.insert(address[lane] / kWord + word);
  }
  return static_cast<int64_t>((all.size() + kBanks - 1) / kBanks);
}

}  // namespace

void Tracer::begin(const cuda::Launch& launch, const void* function, int64_t sampled) {
  Traced traced;
  traced.kernel = launch.kernel;
  traced.function = function;
  traced.grid = launch.grid;
  traced.block = launch.block;
  traced.shared_bytes = launch.shared_bytes;
  traced.sampled = sampled;
  launches_.push_back(std::move(traced));
  pass_.clear();
}

void Tracer::access(Space space, const void* array, const void* address, int bytes, int lane) {
  Stream& stream = pass_[{space, bytes, array}];
  const size_t index = static_cast<size_t>(stream.next[lane]++);
  if (index >= stream.requests.size()) stream.requests.resize(index + 1);
  Request& request = stream.requests[index];
  request.lanes |= 1u << lane;
  request.address[lane] = reinterpret_cast<uintptr_t>(address);
}

// Whole sectors, and wavefronts without conflicts.
void Tracer::bulk_copy(int bytes) {
  constexpr int kSector = 32, kWavefront = 128;
  Traced& launch = launches_.back();
  for (const Space space : {Space::kCopyLoad, Space::kCopyStore}) {
    const int unit = space == Space::kCopyLoad ? kSector : kWavefront;
    Requests& sum = launch.requests[{space, 0}];
    ++sum.count;
    sum.bytes += bytes;
    sum.passes += ceil_div(bytes, unit);
    sum.least += ceil_div(bytes, unit);
  }
}

void Tracer::end_pass() {
  for (auto& [key, stream] : pass_) {
    const auto& [space, bytes, array] = key;
    Requests& sum = launches_.back().requests[{space, bytes}];
    for (const Request& request : stream.requests) {
      ++sum.count;
      sum.bytes += int64_t{bytes} * __builtin_popcount(request.lanes);
      if (space == Space::kShared || space == Space::kCopyStore) {
        sum.passes += turns(request.address, request.lanes, bytes);
        sum.least += fewest_turns(request.address, request.lanes, bytes);
      } else {
        sum.passes += sectors(request.address, request.lanes, bytes);
      }
    }
  }
  pass_.clear();
}

}  // namespace stripctx::simt

#pragma GCC visibility push(default)
extern "C" {

// Runs and counts only `blocks` blocks of every launch in this OS thread; with 0 runs all and
// counts nothing.
void stripctx_simt_sample(int64_t blocks) {
  stripctx::simt::tracer().sample(blocks);
  stripctx::simt::tracing = blocks > 0;
}

// The launches since the last call, in order: [{"kernel": ..., "function": its offset in the
// library, "requests": [[space, width, count, bytes in total, passes, least], ...], ...}, ...]
const char* stripctx_simt_trace() {
  using namespace stripctx::simt;
  static thread_local std::string json;
  const auto extent = [](const stripctx::cuda::Extent3& value) {
    return "[" + std::to_string(value.x) + ", " + std::to_string(value.y) + ", " +
           std::to_string(value.z) + "]";
  };
  json = "[";
  for (const Traced& traced : tracer().take()) {
    Dl_info library{};
    dladdr(traced.function, &library);
    const auto place = reinterpret_cast<uintptr_t>(traced.function) -
                       reinterpret_cast<uintptr_t>(library.dli_fbase);
    json += json.size() > 1 ? ", " : "";
    json += "{\"kernel\": \"" + traced.kernel + "\", \"function\": " + std::to_string(place) +
            ", \"grid\": " + extent(traced.grid) + ", \"block\": " + extent(traced.block) +
            ", \"shared_bytes\": " + std::to_string(traced.shared_bytes) +
            ", \"sampled\": " + std::to_string(traced.sampled) +
            ", \"waiting\": " + std::to_string(traced.waiting) +
            ", \"squares\": " + std::to_string(traced.squares) + ", \"requests\": [";
    const char* comma = "";
    for (const auto& [key, sum] : traced.requests) {
      const char* names[] = {"load", "store", "shared", "copy load", "copy store", "operand"};
      json += comma + std::string("[\"") + names[static_cast<int>(key.first)] + "\"";
      for (const int64_t value : {int64_t{key.second}, sum.count, sum.bytes, sum.passes, sum.least})
        json += ", " + std::to_string(value);
      json += "]";
      comma = ", ";
    }
    json += "], \"operations\": {";
    comma = "";
    for (const auto& [name, count] : traced.operations) {
      json += comma + std::string("\"") + name + "\": " + std::to_string(count);
      comma = ", ";
    }
    json += "}}";
  }
  json += "]";
  return json.c_str();
}

}  // extern "C"
#pragma GCC visibility pop
