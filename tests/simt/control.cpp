// The thread order and the counters, and the C functions with which tests set and read them through
// ctypes.
#include <algorithm>
#include <cstdlib>
#include <exception>
#include <map>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>

#include "counters.hpp"
#include "order.hpp"

namespace stripctx::simt {

constinit thread_local Traffic traffic;

namespace {

std::mutex mutex;
std::optional<Order> chosen_order;
std::map<std::string, Counts> counts_by_kernel;

}  // namespace

Order parse_order(const std::string& text) {
  if (text == "ascending") return {Order::Kind::kAscending, 0};
  if (text == "descending") return {Order::Kind::kDescending, 0};
  if (text == "random") return {Order::Kind::kRandom, 0};
  if (text.rfind("random:", 0) == 0 && text.size() > 7 &&
      text.find_first_not_of("0123456789", 7) == std::string::npos) {
    return {Order::Kind::kRandom, std::strtoull(text.c_str() + 7, nullptr, 10)};
  }
  throw std::runtime_error(
      "STRIPCTX_SIMT_ORDER: expected ascending, descending, random or random:seed, got '" + text +
      "'");
}

Order current_order() {
  const std::lock_guard lock(mutex);
  if (!chosen_order) {
    const char* text = std::getenv("STRIPCTX_SIMT_ORDER");
    chosen_order = parse_order(text ? text : "ascending");
  }
  return *chosen_order;
}

void set_order(const Order& order) {
  const std::lock_guard lock(mutex);
  chosen_order = order;
}

void record(const char* kernel, const Counts& counts) {
  const std::lock_guard lock(mutex);
  Counts& sum = counts_by_kernel[kernel];
  sum.bytes_read += counts.bytes_read;
  sum.bytes_written += counts.bytes_written;
  sum.launches += counts.launches;
  sum.blocks += counts.blocks;
  sum.threads += counts.threads;
  sum.shared_bytes = std::max(sum.shared_bytes, counts.shared_bytes);
  sum.grid = counts.grid;
  sum.block = counts.block;
}

}  // namespace stripctx::simt

#pragma GCC visibility push(default)
extern "C" {

// Returns 0, or -1 if the text names no order.
int stripctx_simt_set_order(const char* text) {
  try {
    stripctx::simt::set_order(stripctx::simt::parse_order(text));
    return 0;
  } catch (const std::exception&) {
    return -1;
  }
}

void stripctx_simt_reset_counts() {
  const std::lock_guard lock(stripctx::simt::mutex);
  stripctx::simt::counts_by_kernel.clear();
}

// {"kernel": {"bytes_read": 0, ..., "grid": [1, 1, 1], ...}, ...}; the text is valid until the next
// call in this OS thread.
const char* stripctx_simt_counts() {
  static thread_local std::string json;
  const std::lock_guard lock(stripctx::simt::mutex);
  json = "{";
  for (const auto& [kernel, counts] : stripctx::simt::counts_by_kernel) {
    const auto field = [](const char* name, int64_t value) {
      return "\"" + std::string(name) + "\": " + std::to_string(value);
    };
    const auto extent = [](const char* name, const stripctx::cuda::Extent3& value) {
      return "\"" + std::string(name) + "\": [" + std::to_string(value.x) + ", " +
             std::to_string(value.y) + ", " + std::to_string(value.z) + "]";
    };
    if (json.size() > 1) json += ", ";
    json += "\"" + kernel + "\": {" + field("bytes_read", counts.bytes_read) + ", " +
            field("bytes_written", counts.bytes_written) + ", " +
            field("launches", counts.launches) + ", " + field("blocks", counts.blocks) + ", " +
            field("threads", counts.threads) + ", " + field("shared_bytes", counts.shared_bytes) +
            ", " + extent("grid", counts.grid) + ", " + extent("block", counts.block) + "}";
  }
  json += "}";
  return json.c_str();
}

}  // extern "C"
#pragma GCC visibility pop
