// What runs the network inside a program: native_executorch.cc or native_onnxruntime.cc.
// Input: a fleetcut_program. Output: an Engine for native_runner.cc.
#ifndef FLEETCUT_NATIVE_ENGINE_H
#define FLEETCUT_NATIVE_ENGINE_H

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "native_program.h"

namespace fleetcut {

using Floats = std::vector<float>;
using Shape = std::vector<std::int32_t>;
using Clock = std::chrono::steady_clock;

inline std::int64_t ns_since(Clock::time_point start) {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - start).count();
}

inline Shape shape_of(const fleetcut_shape& shape) {
  return Shape(shape.sizes, shape.sizes + shape.rank);
}

inline std::size_t count(const Shape& shape) {
  std::size_t product = 1;
  for (const auto size : shape) product *= static_cast<std::size_t>(size);
  return product;
}

inline std::size_t size_of(const fleetcut_bytes& bytes) {
  return static_cast<std::size_t>(bytes.end - bytes.start);
}

// The loaded network. Every function throws std::runtime_error when the runtime refuses.
class Engine {
 public:
  virtual ~Engine() = default;

  // What later inferences read; the values stay where they are until the next call.
  virtual void set_input(Floats& values) = 0;

  // One inference into output, which has as many values as the output's shape; its duration.
  virtual std::int64_t infer_ns(Floats& output) = 0;
};

extern const char* const kRuntime;  // as --describe names it

std::unique_ptr<Engine> load(const fleetcut_program& program, int threads);

}  // namespace fleetcut

#endif
