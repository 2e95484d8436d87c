// Runs the one network that native_launcher.c was linked with, on the engine it was linked with.
// Input: raw little-endian float32 tensors on stdin, or with --serve one command a line.
// Output: raw float32, or one JSON line an answer, on stdout; messages on stderr.
#include <charconv>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iostream>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "native_engine.h"

namespace {

using fleetcut::Clock;
using fleetcut::Floats;
using fleetcut::Shape;
using fleetcut::shape_of;
using Samples = std::vector<std::int64_t>;

constexpr int kMaxThreads = 1024;
constexpr int kMaxSamples = 1000000;
constexpr int kDefaultSamples = 100;

constexpr const char* kUsage =
    "usage: PROGRAM [--threads N]                  raw float32 tensors on stdin, answers on stdout\n"
    "       PROGRAM --describe                     shapes, runtime and precision as JSON\n"
    "       PROGRAM --selftest [--threads N]       golden input against golden output; exit 0 or 1\n"
    "       PROGRAM --benchmark [N] [--threads N]  nanoseconds of N inferences of the golden input\n"
    "       PROGRAM --serve [--threads N]          'input FILE', 'bench N', 'output FILE', 'quit'\n";

Floats embedded(const fleetcut_bytes& bytes) {
  Floats values(fleetcut::size_of(bytes) / sizeof(float));
  std::memcpy(values.data(), bytes.start, values.size() * sizeof(float));
  return values;
}

// The loaded network and the tensor it answers to, at first the golden input.
class Network {
 public:
  // Throws std::runtime_error when the runtime refuses the thread count or the network.
  Network(const fleetcut_program& program, int threads)
      : input_count_(fleetcut::count(shape_of(program.input_shape))),
        output_(fleetcut::count(shape_of(program.output_shape))) {
    const auto start = Clock::now();
    engine_ = fleetcut::load(program, threads);
    set_input(embedded(program.golden_input));
    load_ns_ = fleetcut::ns_since(start);
  }

  std::int64_t load_ns() const { return load_ns_; }
  std::size_t input_count() const { return input_count_; }

  void set_input(Floats values) {
    if (values.size() != input_count_) {
      throw std::runtime_error("input has " + std::to_string(values.size()) + " values, expected " +
                               std::to_string(input_count_));
    }
    input_ = std::move(values);
    engine_->set_input(input_);
    answered_ = false;
  }

  // One inference; its duration, without the copy of the answer.
  std::int64_t infer_ns() {
    const auto elapsed_ns = engine_->infer_ns(output_);
    answered_ = true;
    return elapsed_ns;
  }

  // The answer to the present input.
  const Floats& output() {
    if (!answered_) infer_ns();
    return output_;
  }

 private:
  std::size_t input_count_;
  std::unique_ptr<fleetcut::Engine> engine_;
  Floats input_, output_;
  bool answered_ = false;
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
         ",\"runtime\":" + quoted(fleetcut::kRuntime) +
         ",\"version\":" + quoted(program.version) +
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
  try {
    return run(*program, *options);
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
}
