// Runs every CPU kernel on exact-size buffers, for tests/test_sanitize.py to build with
// AddressSanitizer and UndefinedBehaviorSanitizer. To add an operator, add an entry to kOperators.
//
//   operators RESULTS N,C,H,W ...      all operators, dtypes and layouts, at each shape
//
// Prints a line for every result, "operator dtype layout shape: count", and writes their elements
// to the file RESULTS as float64, one after another. Exit status 1 if the division of the work
// among threads changes a bit, or if an element was not written.
#include "encoding/params.hpp"
#include "height/params.hpp"
#include "labels/params.hpp"
#include "pyramid/params.hpp"
#include "strip/params.hpp"
#include "upsample/params.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <sstream>

#include "sample.hpp"

namespace stripctx::sanitize {

namespace {

struct Operator {
  const char* name;
  void (*run)(Sample&);
};

// More bins than positions, fewer, one; a vector's length and one more.
const Sizes kBins = {{1, 1}, {2, 3}, {16, 1}, {3, 17}};
const Sizes kCells = {{1, 1}, {2, 3}, {6, 17}};
constexpr int64_t kKernel[2] = {3, 1}, kPadding[2] = {2, 0}, kDilation[2] = {2, 1};

Taps plain(const Sample& s) {
  return {{s.height(), s.width()}};
}

// Levels with alternating modes; one has an explicit ratio.
Levels mixed(const PooledLevels& maps) {
  Levels levels{maps.count, {}};
  for (int l = 0; l < maps.count; ++l) {
    levels[l] = {maps[l], static_cast<Mode>((l + 1) % kModes)};
  }
  levels[0].ratio[1] = 0.25 * static_cast<double>(levels[0].size[3]) / 100;
  return levels;
}

// A kernel whose result has the size of the map.
Taps tall(const Sample& s) {
  Taps taps = plain(s);
  std::copy_n(kKernel, 2, taps.kernel);
  std::copy_n(kPadding, 2, taps.padding);
  std::copy_n(kDilation, 2, taps.dilation);
  return taps;
}

// The map as logits of a larger image, and per-pixel values of that image.
struct Image {
  Sample& sample;
  int64_t height, width;
  WideLogits logits;

  explicit Image(Sample& s)
      : sample(s),
        height(s.height() + 3),
        width(s.width() + 2),
        logits{s.map(),
               {height, width},
               s.width() % 2 == 0 ? Mode::kBilinear : Mode::kBilinearAligned,
               s.channels_last()} {}

  // Without logits the binding executes nothing.
  explicit operator bool() const { return logits.numel() > 0; }

  Target target(int64_t bytes) { return {{sample.labels(height, width, bytes), bytes}, 0}; }
  View map() { return sample.map_of(height, width); }
  View pixels() { return sample.pixels(height, width); }
  View pixels_result() { return sample.pixels_result(height, width); }
  View class_weights() { return sample.class_weights(); }
};

template <int kBytes>
void argmax(Sample& s) {
  Image image(s);
  if (!image) return;
  const LabelMap labels{s.labels_result(image.height, image.width, kBytes), kBytes};
  s.execute(UpsampleArgmax{image.logits, labels, kBytes == 8 ? image.pixels_result() : View{}});
}

template <bool kPerPixel>
void cross_entropy(Sample& s) {
  Image image(s);
  if (!image) return;
  const int64_t rows = s.image_count() * image.height;
  s.execute(UpsampleCrossEntropy{image.logits, image.target(kPerPixel ? 8 : 1),
                                 kPerPixel ? image.class_weights() : View{}, kPerPixel ? 0.1 : 0,
                                 kPerPixel ? image.pixels_result() : s.partials(1, rows),
                                 s.partials(1, rows), image.pixels_result(), kPerPixel});
}

template <bool kPerPixel>
void binary(Sample& s) {
  Image image(s);
  if (!image) return;
  const int64_t rows = s.image_count() * s.channel_count() * image.height;
  s.execute(UpsampleBinary{
      image.logits, image.map(), kPerPixel ? image.map() : View{}, kPerPixel ? image.map() : View{},
      kPerPixel ? s.class_pixels_result(image.height, image.width) : s.partials(1, rows),
      kPerPixel});
}

const Operator kOperators[] = {
    {"strip_pool",
     [](Sample& s) { s.execute(StripPool{s.map(), s.rows_result(), s.cols_result()}); }},
    {"strip_pool_backward",
     [](Sample& s) { s.execute(StripPoolBackward{s.rows(), s.cols(), s.map_result()}); }},
    {"strip_add_relu",
     [](Sample& s) { s.execute(StripAddRelu{s.rows(), s.cols(), s.map_result()}); }},
    {"strip_add_relu_backward",
     [](Sample& s) {
       s.execute(
           StripAddReluBackward{s.map(), s.rows(), s.cols(), s.rows_result(), s.cols_result()});
     }},
    {"sigmoid_gate",
     [](Sample& s) { s.execute(SigmoidGate{s.map(), s.map(), s.channels(), s.map_result()}); }},
    {"sigmoid_gate_backward",
     [](Sample& s) {
       SigmoidGateBackward op{s.map(),        s.map(),        s.map(), s.channels(),
                              s.map_result(), s.map_result(), {}};
       op.partials = s.partials(cpu::partials(op), s.channel_count());
       s.execute(op);
       s.execute(SumPartials{op.partials, s.channels_result()});
     }},
    {"pyramid_pool", [](Sample& s) { s.execute(PyramidPool{s.map(), s.levels_result(kBins)}); }},
    {"pyramid_pool_backward",
     [](Sample& s) { s.execute(PyramidPoolBackward{s.levels(kBins), s.map_result()}); }},
    {"pyramid_max_pool",
     [](Sample& s) {
       s.execute(PyramidMaxPool{s.map(), s.levels_result(kBins), s.indices_result(kBins)});
     }},
    {"pyramid_max_pool_backward",
     [](Sample& s) {
       s.execute(PyramidMaxPoolBackward{s.levels(kBins), s.indices(kBins), s.map_result()});
     }},
    {"pyramid_concat",
     [](Sample& s) {
       const Levels levels = mixed(s.levels(kCells));
       const View out = s.double_map_result();
       for (const int k : {0, 1}) {
         s.execute(PyramidAdd{
             {}, s.half(out, k), {1, {levels[k + 1]}}, plain(s), false, s.channels_last()});
       }
     }},
    {"pyramid_concat_backward",
     [](Sample& s) {
       s.execute(PyramidAddBackward{
           s.map(), {}, {}, mixed(s.levels_result(kCells)), plain(s), s.channels_last()});
     }},
    {"pyramid_add_relu",
     [](Sample& s) {
       s.execute(PyramidAdd{s.map(), s.map_result(), mixed(s.levels(kCells)), plain(s), true,
                            s.channels_last()});
     }},
    {"pyramid_add_relu_backward",
     [](Sample& s) {
       s.execute(PyramidAddBackward{s.map(), s.map(), s.map_result(),
                                    mixed(s.levels_result(kCells)), plain(s), s.channels_last()});
     }},
    {"pyramid_taps_add",
     [](Sample& s) {
       s.execute(PyramidAdd{s.map(), s.map_result(),
                            mixed(s.levels(kCells, kKernel[0] * kKernel[1])), tall(s), false,
                            s.channels_last()});
     }},
    {"pyramid_taps_add_backward",
     [](Sample& s) {
       s.execute(PyramidAddBackward{s.map(),
                                    {},
                                    {},
                                    mixed(s.levels_result(kCells, kKernel[0] * kKernel[1])),
                                    tall(s),
                                    s.channels_last()});
     }},
    {"row_gate",
     [](Sample& s) {
       s.execute(RowGate{s.map(), s.row_logits(3), s.map_result(), s.channels_last()});
     }},
    {"row_gate_backward",
     [](Sample& s) {
       s.execute(RowGateBackward{s.map(), s.map(), s.row_logits(17), s.map_result(),
                                 s.row_logits_result(17), s.channels_last()});
     }},
    {"encode",
     [](Sample& s) {
       const int64_t K = 19, N = s.image_count(), D = s.channel_count();
       Encode op{s.flat_map(), s.codewords(K), s.scale(K), false};
       op.partials = s.partials(cpu::partials(op), N * K * D);
       s.execute(op);
       s.execute(SumPartials{op.partials, s.partials(1, N * K * D)});
     }},
    {"encode_backward",
     [](Sample& s) {
       const int64_t K = 19, N = s.image_count(), D = s.channel_count();
       EncodeBackward op{s.matrix(N, K, D), s.flat_map(), s.codewords(K),
                         s.scale(K),        false,        s.flat_map_result()};
       op.codeword_partials = s.partials(N * cpu::partials(op), K * D);
       op.scale_partials = s.partials(N * cpu::partials(op), K);
       s.execute(op);
       s.execute(SumPartials{op.codeword_partials, s.partials(1, K * D)});
     }},
    {"channel_gate",
     [](Sample& s) { s.execute(ChannelGate{s.flat_map(), s.gate(), s.flat_map_result()}); }},
    {"channel_gate_backward",
     [](Sample& s) {
       ChannelGateBackward op{s.flat_map(), s.flat_map(), s.gate(), s.flat_map_result()};
       op.partials = s.partials(cpu::partials(op), s.image_count() * s.channel_count());
       s.execute(op);
     }},
    {"upsample_argmax", argmax<1>},
    {"upsample_softmax_max", argmax<8>},
    {"upsample_cross_entropy", cross_entropy<false>},
    {"upsample_cross_entropy_per_pixel", cross_entropy<true>},
    {"upsample_cross_entropy_backward",
     [](Sample& s) {
       Image image(s);
       if (!image) return;
       s.execute(UpsampleCrossEntropyBackward{image.pixels(), image.logits, image.target(4),
                                              image.class_weights(), 0.1, image.pixels(),
                                              s.map_result()});
     }},
    {"upsample_binary_cross_entropy", binary<false>},
    {"upsample_binary_cross_entropy_per_pixel", binary<true>},
    {"upsample_binary_cross_entropy_backward",
     [](Sample& s) {
       Image image(s);
       if (!image) return;
       const View grad = s.class_pixels(image.height, image.width);
       s.execute(UpsampleBinaryBackward{grad, image.logits, image.map(), image.map(), image.map(),
                                        s.map_result()});
     }},
    {"upsample_dice",
     [](Sample& s) {
       Image image(s);
       if (!image) return;
       const View parts =
           s.partials(cpu::dice_parts(image.logits), s.image_count() * 3 * s.channel_count());
       s.execute(UpsampleDice{image.logits, image.target(8), image.pixels_result(), parts.data});
     }},
    {"upsample_dice_backward",
     [](Sample& s) {
       Image image(s);
       if (!image) return;
       const Target target = image.target(1);
       const View grad = s.matrix(s.image_count(), 3, s.channel_count());
       const View log_sums = image.pixels(), dots = image.pixels_result();
       s.execute(UpsampleDiceDots{grad, image.logits, target, log_sums, dots});
       s.execute(UpsampleDiceBackward{grad, image.logits, target, log_sums, dots, s.map_result()});
     }},
};

struct NamedType {
  const char* name;
  DType dtype;
};

constexpr NamedType kTypes[] = {{"float64", DType::kFloat64},
                                {"float32", DType::kFloat32},
                                {"float16", DType::kFloat16},
                                {"bfloat16", DType::kBFloat16}};

constexpr Layout kLayouts[] = {{"contiguous", false, false},
                               {"channels_last", true, false},
                               {"sliced", false, true},
                               {"sliced_channels_last", true, true}};

std::vector<std::vector<double>> values(const Operator& which, const Setting& setting) {
  Sample sample(setting);
  which.run(sample);
  return sample.values();
}

bool same(const std::vector<double>& a, const std::vector<double>& b) {
  return a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(double)) == 0;
}

// Returns an error message for one operator in one setting, "" if there is none.
std::string run(const Operator& which, Setting setting, const std::string& title,
                std::ofstream& file) {
  setting.divided = true;
  const auto divided = values(which, setting);
  setting.divided = false;
  const auto whole = values(which, setting);
  for (size_t i = 0; i < whole.size(); ++i) {
    if (!same(whole[i], divided[i])) return "other bits where the work is divided";
    for (const double value : whole[i]) {
      if (std::isnan(value)) return "an element was not written";
    }
    std::cout << title << ": " << whole[i].size() << "\n";
    file.write(reinterpret_cast<const char*>(whole[i].data()),
               static_cast<std::streamsize>(whole[i].size() * sizeof(double)));
  }
  return "";
}

Shape parse(const std::string& text) {
  Shape shape{};
  std::istringstream numbers(text);
  char comma;
  for (int64_t& size : shape) numbers >> size >> comma;
  return shape;
}

int run_all(const std::string& path, const std::vector<std::string>& shapes) {
  std::ofstream file(path, std::ios::binary);
  int faults = 0;
  for (const std::string& shape : shapes) {
    for (const NamedType& type : kTypes) {
      for (const Layout& layout : kLayouts) {
        for (const Operator& which : kOperators) {
          const std::string title =
              std::string(which.name) + " " + type.name + " " + layout.name + " " + shape;
          const std::string fault =
              run(which, {parse(shape), type.dtype, layout, false}, title, file);
          if (fault.empty()) continue;
          std::cerr << title << ": " << fault << "\n";
          ++faults;
        }
      }
    }
  }
  return file.flush() && faults == 0 ? 0 : 1;
}

}  // namespace

}  // namespace stripctx::sanitize

int main(int count, char** arguments) {
  if (count < 3) {
    std::cerr << "operators RESULTS N,C,H,W ...\n";
    return 2;
  }
  return stripctx::sanitize::run_all(arguments[1], {arguments + 2, arguments + count});
}
