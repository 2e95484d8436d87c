// ExecuTorch's runtime as the engine of a program: XNNPACK's kernels, and its own for the rest.
// Input: a .pte file's bytes. Output: fleetcut::load.
#include <executorch/extension/data_loader/buffer_data_loader.h>
#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>
#include <executorch/runtime/platform/platform.h>

#include <malloc.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <iostream>
#include <limits>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>

#include "native_engine.h"

// The wheel ships this class in libexecutorch_threadpool.so but not its header.
namespace executorch::extension::threadpool {
class ThreadPool {
 public:
  bool _unsafe_reset_threadpool(std::uint32_t threads);
};
ThreadPool* get_threadpool();
}  // namespace executorch::extension::threadpool

namespace fleetcut {
namespace {

constexpr std::size_t kHugePage = std::size_t{1} << 21;
constexpr std::size_t kActivations = std::size_t{1} << 26;
constexpr std::chrono::milliseconds kLettingGoInterval{4};

// The runtime reports every start as information; only its errors are worth a line on stderr.
void log_errors(et_timestamp_t, et_pal_log_level_t level, const char*, const char*, std::size_t,
                const char* message, std::size_t length) {
  if (level == kDebug || level == kInfo) return;
  std::cerr << "executorch: " << std::string_view(message, length) << '\n';
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

void check(executorch::runtime::Error error, const char* fact) {
  if (error != executorch::runtime::Error::Ok) {
    throw std::runtime_error(std::string(fact) + ": ExecuTorch error " +
                             std::to_string(static_cast<int>(error)));
  }
}

class Executorch : public Engine {
 public:
  Executorch(const fleetcut_program& program, int threads)
      : input_shape_(shape_of(program.input_shape)) {
    prefer_huge_pages(size_of(program.model) + kActivations);
    auto* pool = executorch::extension::threadpool::get_threadpool();
    if (pool == nullptr || !pool->_unsafe_reset_threadpool(static_cast<std::uint32_t>(threads))) {
      throw std::runtime_error("cannot set " + std::to_string(threads) + " threads");
    }
    module_ = std::make_unique<executorch::extension::Module>(
        std::make_unique<executorch::extension::BufferDataLoader>(program.model.start,
                                                                  size_of(program.model)));
    const LettingGo weights(program.model);
    check(module_->load_forward(), "cannot load the network");
  }

  void set_input(Floats& values) override {
    tensor_ = executorch::extension::from_blob(values.data(), input_shape_);
  }

  std::int64_t infer_ns(Floats& output) override {
    const auto start = Clock::now();
    auto result = module_->forward(tensor_);
    const auto elapsed_ns = ns_since(start);
    check(result.error(), "the inference failed");
    const auto answer = result->at(0).toTensor();
    if (static_cast<std::size_t>(answer.numel()) != output.size()) {
      throw std::runtime_error("the network answered with another shape than it was built for");
    }
    const float* values = answer.const_data_ptr<float>();
    std::copy(values, values + answer.numel(), output.begin());
    return elapsed_ns;
  }

 private:
  Shape input_shape_;
  std::unique_ptr<executorch::extension::Module> module_;
  executorch::extension::TensorPtr tensor_;
};

}  // namespace

const char* const kRuntime = "executorch-xnnpack";

std::unique_ptr<Engine> load(const fleetcut_program& program, int threads) {
  using executorch::runtime::PalImpl;
  executorch::runtime::register_pal(PalImpl::create(log_errors, __FILE__));
  return std::make_unique<Executorch>(program, threads);
}

}  // namespace fleetcut
