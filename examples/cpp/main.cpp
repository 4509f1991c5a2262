// Runs a network of stripctx, exported by AOTInductor, without Python:
//
//   segment LIBRARY NETWORK.aoti.pt2 IMAGE.pt OUTPUT.pt
//
// LIBRARY is stripctx_cpu.so; `python -m stripctx` prints its path. It defines the operators that
// the package calls; nothing else of stripctx is needed. IMAGE.pt contains a tensor (N, 3, H, W)
// with the size of the exported network's input, written by torch.save. The network's first output
// is written in the same format, for torch.load. Both stand for the program's own images.
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/csrc/jit/serialization/pickle.h>

#include <exception>
#include <fstream>
#include <iostream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

at::Tensor load(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error(path + " cannot be read");
  const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
  return torch::jit::pickle_load(bytes).toTensor();
}

void save(const at::Tensor& tensor, const std::string& path) {
  const std::vector<char> bytes = torch::jit::pickle_save(tensor);
  std::ofstream file(path, std::ios::binary);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  if (!file) throw std::runtime_error(path + " cannot be written");
}

void run(const std::string& package, const std::string& image, const std::string& output) {
  torch::inductor::AOTIModelPackageLoader network(package);
  const std::vector<at::Tensor> outputs = network.run({load(image)});
  std::cout << "output " << outputs.at(0).sizes() << '\n';
  save(outputs[0].contiguous(), output);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 5) {
    std::cerr << "usage: segment LIBRARY NETWORK.aoti.pt2 IMAGE.pt OUTPUT.pt\n";
    return 2;
  }
  if (dlopen(argv[1], RTLD_NOW) == nullptr) {
    std::cerr << "segment: LIBRARY cannot be loaded: " << dlerror() << '\n';
    return 2;
  }
  try {
    run(argv[2], argv[3], argv[4]);
  } catch (const std::exception& error) {
    std::cerr << "segment: " << error.what() << '\n';
    return 1;
  }
  return 0;
}
