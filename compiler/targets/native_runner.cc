// Runs the one network that native_launcher.c was linked with.
// Input: raw little-endian float32 tensors on stdin, or with --serve one command a line.
// Output: raw float32, or one JSON line an answer, on stdout; messages on stderr.
#include <executorch/extension/data_loader/buffer_data_loader.h>
#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>
#include <executorch/runtime/platform/platform.h>

#include <malloc.h>
#include <sys/mman.h>

#include <atomic>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iostream>
#include <limits>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "native_program.h"

// The wheel ships this class in libexecutorch_threadpool.so but not its header.
namespace executorch::extension::threadpool {
class ThreadPool {
 public:
  bool _unsafe_reset_threadpool(std::uint32_t threads);
};
ThreadPool* get_threadpool();
}  // namespace executorch::extension::threadpool

namespace {

using Floats = std::vector<float>;
using Shape = std::vector<executorch::aten::SizesType>;
using Samples = std::vector<std::int64_t>;
using Clock = std::chrono::steady_clock;

constexpr std::size_t kHugePage = std::size_t{1} << 21;
constexpr std::size_t kActivations = std::size_t{1} << 26;
constexpr std::chrono::milliseconds kLettingGoInterval{4};
constexpr int kMaxThreads = 1024;
constexpr int kMaxSamples = 1000000;
constexpr int kDefaultSamples = 100;

constexpr const char* kUsage =
    "usage: PROGRAM [--threads N]                  raw float32 tensors on stdin, answers on stdout\n"
    "       PROGRAM --describe                     shapes, runtime and precision as JSON\n"
    "       PROGRAM --selftest [--threads N]       golden input against golden output; exit 0 or 1\n"
    "       PROGRAM --benchmark [N] [--threads N]  nanoseconds of N inferences of the golden input\n"
    "       PROGRAM --serve [--threads N]          'input FILE', 'bench N', 'output FILE', 'quit'\n";

// The runtime reports every start as information; only its errors are worth a line on stderr.
void log_errors(et_timestamp_t, et_pal_log_level_t level, const char*, const char*, std::size_t,
                const char* message, std::size_t length) {
  if (level == kDebug || level == kInfo) return;
  std::cerr << "executorch: " << std::string_view(message, length) << '\n';
}

std::int64_t ns_since(Clock::time_point start) {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - start).count();
}

Shape shape_of(const fleetcut_shape& shape) {
  return Shape(shape.sizes, shape.sizes + shape.rank);
}

std::size_t count(const Shape& shape) {
  std::size_t product = 1;
  for (const auto size : shape) product *= static_cast<std::size_t>(size);
  return product;
}

std::size_t size_of(const fleetcut_bytes& bytes) {
  return static_cast<std::size_t>(bytes.end - bytes.start);
}

Floats embedded(const fleetcut_bytes& bytes) {
  Floats values(size_of(bytes) / sizeof(float));
  std::memcpy(values.data(), bytes.start, values.size() * sizeof(float));
  return values;
}

// Packed weights and activations come from one heap that the kernel may back with huge pages: on a
// server ResNet50 runs a twelfth faster, for matrix rows lie pages apart. Nothing is touched here.
void prefer_huge_pages(std::size_t size) {
  mallopt(M_MMAP_MAX, 0);
  mallopt(M_TRIM_THRESHOLD, std::numeric_limits<int>::max());
  void* const heap = std::malloc(size);
  if (heap == nullptr) return;
  const auto start = reinterpret_cast<std::uintptr_t>(heap) / kHugePage * kHugePage + kHugePage;
  const auto end = (reinterpret_cast<std::uintptr_t>(heap) + size) / kHugePage * kHugePage;
  if (start < end) madvise(reinterpret_cast<void*>(start), end - start, MADV_HUGEPAGE);
  std::free(heap);
}

// Lets go of the file's weights while they are packed, or they would be resident twice at the end.
class LettingGo {
 public:
  explicit LettingGo(const fleetcut_bytes& bytes) : bytes_(bytes), thread_([this] { run(); }) {}
  LettingGo(const LettingGo&) = delete;
  LettingGo& operator=(const LettingGo&) = delete;
  ~LettingGo() {
    done_ = true;
    thread_.join();
  }

 private:
  void run() {
    while (!done_) {
      std::this_thread::sleep_for(kLettingGoInterval);
      fleetcut_let_go(bytes_);
    }
  }

  fleetcut_bytes bytes_;
  std::atomic<bool> done_{false};
  std::thread thread_;
};

// The loaded network and the tensor it answers to, at first the golden input.
class Network {
 public:
  // Throws std::runtime_error when the runtime refuses the thread count or the network.
  Network(const fleetcut_program& program, int threads)
      : input_shape_(shape_of(program.input_shape)),
        output_shape_(shape_of(program.output_shape)) {
    const auto start = Clock::now();
    prefer_huge_pages(size_of(program.model) + kActivations);
    auto* pool = executorch::extension::threadpool::get_threadpool();
    if (pool == nullptr || !pool->_unsafe_reset_threadpool(static_cast<std::uint32_t>(threads))) {
      throw std::runtime_error("cannot set " + std::to_string(threads) + " threads");
    }
    module_ = std::make_unique<executorch::extension::Module>(
        std::make_unique<executorch::extension::BufferDataLoader>(program.model.start,
                                                                  size_of(program.model)));
    {
      const LettingGo weights(program.model);
      check(module_->load_forward(), "cannot load the network");
    }
    set_input(embedded(program.golden_input));
    load_ns_ = ns_since(start);
  }

  std::int64_t load_ns() const { return load_ns_; }
  std::size_t input_count() const { return count(input_shape_); }

  void set_input(Floats values) {
    if (values.size() != input_count()) {
      throw std::runtime_error("input has " + std::to_string(values.size()) + " values, expected " +
                               std::to_string(input_count()));
    }
    input_ = std::move(values);
    tensor_ = executorch::extension::from_blob(input_.data(), input_shape_);
    output_.clear();
  }

  // One inference; its duration, without the copy of the answer.
  std::int64_t infer_ns() {
    const auto start = Clock::now();
    auto result = module_->forward(tensor_);
    const auto elapsed_ns = ns_since(start);
    check(result.error(), "the inference failed");
    const auto answer = result->at(0).toTensor();
    if (static_cast<std::size_t>(answer.numel()) != count(output_shape_)) {
      throw std::runtime_error("the network answered with another shape than it was built for");
    }
    const float* values = answer.const_data_ptr<float>();
    output_.assign(values, values + answer.numel());
    return elapsed_ns;
  }

  // The answer to the present input.
  const Floats& output() {
    if (output_.empty()) infer_ns();
    return output_;
  }

 private:
  static void check(executorch::runtime::Error error, const char* fact) {
    if (error != executorch::runtime::Error::Ok) {
      throw std::runtime_error(std::string(fact) + ": ExecuTorch error " +
                               std::to_string(static_cast<int>(error)));
    }
  }

  Shape input_shape_, output_shape_;
  std::unique_ptr<executorch::extension::Module> module_;
  Floats input_;
  executorch::extension::TensorPtr tensor_;
  Floats output_;
  std::int64_t load_ns_ = 0;
};

// ---- JSON ------------------------------------------------------------------------------------

std::string quoted(std::string_view text) {
  std::string json = "\"";
  for (const unsigned char c : text) {
    if (c == '"' || c == '\\') {
      json += '\\';
      json += static_cast<char>(c);
    } else if (c < 0x20 || c >= 0x7f) {
      char escape[8];
      std::snprintf(escape, sizeof escape, "\\u%04x", static_cast<unsigned>(c));
      json += escape;
    } else {
      json += static_cast<char>(c);
    }
  }
  return json + '"';
}

std::string number(double value) {
  if (!std::isfinite(value)) return "null";
  char text[32];
  std::snprintf(text, sizeof text, "%.9g", value);
  return text;
}

template <typename Values>
std::string list(const Values& values) {
  std::string json = "[";
  for (const auto value : values) {
    if (json.size() > 1) json += ',';
    json += std::to_string(value);
  }
  return json + ']';
}

void answer(const std::string& json) { std::cout << json << '\n' << std::flush; }

// ---- Verbs -----------------------------------------------------------------------------------

// A whole number from 1 to max, and nothing after it.
std::optional<int> parse_count(std::string_view text, int max) {
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  const bool whole = error == std::errc() && end == text.data() + text.size();
  return whole && value >= 1 && value <= max ? std::optional<int>(value) : std::nullopt;
}

// A stream's next tensor of so many values, or nullopt at its end.
std::optional<Floats> read_floats(std::istream& stream, std::size_t values_count,
                                  const std::string& name) {
  Floats values(values_count);
  const std::size_t expected = values_count * sizeof(float);
  stream.read(reinterpret_cast<char*>(values.data()), static_cast<std::streamsize>(expected));
  const auto found = static_cast<std::size_t>(stream.gcount());
  if (found == 0) return std::nullopt;
  if (found != expected) {
    throw std::runtime_error(name + " ends within a tensor of " + std::to_string(expected) +
                             " bytes");
  }
  return values;
}

void write_floats(std::ostream& stream, const Floats& values, const std::string& name) {
  stream.write(reinterpret_cast<const char*>(values.data()),
               static_cast<std::streamsize>(values.size() * sizeof(float)));
  stream.flush();
  if (!stream) throw std::runtime_error("cannot write " + name);
}

std::string bench(Network& network, int samples) {
  Samples latency_ns(static_cast<std::size_t>(samples));
  for (auto& sample : latency_ns) sample = network.infer_ns();
  return "{\"latency_ns\":" + list(latency_ns) + "}";
}

int describe(const fleetcut_program& program) {
  answer("{\"input_shape\":" + list(shape_of(program.input_shape)) +
         ",\"output_shape\":" + list(shape_of(program.output_shape)) +
         ",\"runtime\":\"executorch-xnnpack\",\"version\":" + quoted(program.version) +
         ",\"precision\":" + quoted(program.precision) + ",\"machine\":" +
         quoted(program.machine) + ",\"libc\":" + quoted(program.libc) +
         ",\"threads\":" + std::to_string(program.threads) +
         ",\"atol\":" + number(program.atol) + "}");
  return 0;
}

int selftest(const fleetcut_program& program, Network& network) {
  const Floats expected = embedded(program.golden_output);
  const Floats& found = network.output();
  double max_abs_err = 0;
  for (std::size_t i = 0; i < found.size(); ++i) {
    const double deviation = std::fabs(static_cast<double>(found[i]) - expected.at(i));
    if (!(deviation <= max_abs_err)) max_abs_err = deviation;  // a NaN stays
    if (std::isnan(max_abs_err)) break;
  }
  const bool passed = max_abs_err <= program.atol;
  answer("{\"max_abs_err\":" + number(max_abs_err) + ",\"atol\":" + number(program.atol) +
         ",\"passed\":" + (passed ? "true}" : "false}"));
  return passed ? 0 : 1;
}

int run_all(Network& network) {
  auto input = read_floats(std::cin, network.input_count(), "stdin");
  if (!input) throw std::runtime_error("stdin is empty");
  for (; input; input = read_floats(std::cin, network.input_count(), "stdin")) {
    network.set_input(*std::move(input));
    write_floats(std::cout, network.output(), "stdout");
  }
  return 0;
}

// The answer to one line of --serve. Throws std::exception with what is wrong with it.
std::string reply(Network& network, const std::string& line) {
  const auto space = line.find(' ');
  const std::string verb = line.substr(0, space);
  const std::string argument = space == std::string::npos ? "" : line.substr(space + 1);
  if (verb == "bench") {
    const auto samples = parse_count(argument, kMaxSamples);
    if (!samples) throw std::runtime_error("bench needs a number from 1 to 1000000");
    return bench(network, *samples);
  }
  if (verb != "input" && verb != "output") {
    throw std::runtime_error("unknown command '" + verb.substr(0, 40) +
                             "', expected input, bench, output or quit");
  }
  if (argument.empty()) throw std::runtime_error(verb + " needs a file name");
  if (verb == "input") {
    std::ifstream file(argument, std::ios::binary);
    if (!file) throw std::runtime_error("cannot open " + argument);
    auto input = read_floats(file, network.input_count(), argument);
    if (!input || file.peek() != std::ifstream::traits_type::eof()) {
      throw std::runtime_error(argument + (input ? " is longer than a tensor" : " is empty"));
    }
    network.set_input(*std::move(input));
  } else {
    std::ofstream file(argument, std::ios::binary | std::ios::trunc);
    write_floats(file, network.output(), argument);
  }
  return "{\"ok\":true}";
}

int serve(Network& network) {
  answer("{\"ready\":true,\"load_ns\":" + std::to_string(network.load_ns()) + "}");
  std::string line;
  while (std::getline(std::cin, line) && line != "quit") {
    try {
      answer(reply(network, line));
    } catch (const std::exception& error) {
      answer("{\"error\":" + quoted(error.what()) + "}");
    }
  }
  return 0;
}

// ---- Command line ----------------------------------------------------------------------------

struct Options {
  std::string verb;  // empty: stdin to stdout
  int threads = 0;  // as the program was built for
  int samples = kDefaultSamples;
};

// nullopt: the command line is not understood.
std::optional<Options> parse(const std::vector<std::string>& arguments) {
  Options options;
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    const std::string& argument = arguments[i];
    const std::string next = i + 1 < arguments.size() ? arguments[i + 1] : "";
    const bool is_verb = argument == "--describe" || argument == "--selftest" ||
                         argument == "--benchmark" || argument == "--serve";
    if (is_verb && options.verb.empty()) {
      options.verb = argument;
      if (argument == "--benchmark" && !next.empty() && next[0] != '-') {
        const auto samples = parse_count(next, kMaxSamples);
        if (!samples) return std::nullopt;
        options.samples = *samples;
        ++i;
      }
    } else if (argument == "--threads") {
      const auto threads = parse_count(next, kMaxThreads);
      if (!threads) return std::nullopt;
      options.threads = *threads;
      ++i;
    } else {
      return std::nullopt;
    }
  }
  return options;
}

int run(const fleetcut_program& program, const Options& options) {
  if (options.verb == "--describe") return describe(program);
  Network network(program, options.threads > 0 ? options.threads : program.threads);
  if (options.verb == "--selftest") return selftest(program, network);
  if (options.verb == "--serve") return serve(network);
  if (options.verb == "--benchmark") {
    answer(bench(network, options.samples));
    return 0;
  }
  return run_all(network);
}

}  // namespace

extern "C" __attribute__((visibility("default"))) fleetcut_entry fleetcut_main;

int fleetcut_main(const fleetcut_program* program, int argc, char** argv) {
  const auto options = parse(std::vector<std::string>(argv + 1, argv + argc));
  if (!options) {
    std::cerr << kUsage;
    return 2;
  }
  using executorch::runtime::PalImpl;
  executorch::runtime::register_pal(PalImpl::create(log_errors, __FILE__));
  try {
    return run(*program, *options);
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
}
