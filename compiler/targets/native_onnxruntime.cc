// ONNX Runtime as the engine of a program, its weights read where they lie in the program's file.
// Input: an .ort file, or a graph whose weights are inputs and those weights, as ort_program.py
// writes them. Output: fleetcut::load.
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <link.h>
#include <malloc.h>

#include <cstdlib>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>

#include "native_engine.h"

// The wheel ships the library but not its header. What is asked of it here has its place in
// OrtApi (onnxruntime_c_api.h) since version 1.6: entries are only ever added at the end.
extern "C" {
struct OrtApiBase {
  const void* const* (*get_api)(std::uint32_t version);
  const char* (*version)();
};
const OrtApiBase* OrtGetApiBase();
}

namespace fleetcut {
namespace {

constexpr std::uint32_t kApiVersion = 6;

enum Function : std::size_t {
  kGetErrorMessage = 2,
  kCreateEnv = 3,
  kCreateSessionFromArray = 8,
  kCreateSessionOptions = 10,
  kSetIntraOpNumThreads = 24,
  kSetInterOpNumThreads = 25,
  kSessionGetInputName = 36,
  kSessionGetOutputName = 37,
  kCreateTensorWithDataAsOrtValue = 49,
  kCreateCpuMemoryInfo = 69,
  kGetAllocatorWithDefaultOptions = 78,
  kReleaseValue = 96,
  kAddSessionConfigEntry = 130,
  kRunWithBinding = 133,
  kCreateIoBinding = 134,
  kBindInput = 136,
  kBindOutput = 137,
};

enum { kLoggingError = 3, kFloat = 1, kDeviceAllocator = 0, kMemTypeDefault = 0 };

constexpr std::size_t kMaxRank = 4;

// The head of a graph whose weights lie beside it, in the order of its inputs after the first.
struct Blocked {
  char magic[8];
  std::uint64_t weights, graph_offset, graph_size;
};
struct Weight {
  std::uint64_t offset, rank;
  std::int64_t sizes[kMaxRank];
};
constexpr char kMagic[] = "fcNCHW16";

#if defined(__x86_64__)
// Of the CPU and of the kernel, which keeps its registers (Intel SDM 1, 15.2). Not by
// __builtin_cpu_supports: that reads a variable of libgcc's, which this program has as doors.
bool has_avx512f() {
  constexpr unsigned kOsXsave = 1u << 27, kAvx512f = 1u << 16, kKept = 0xe6;
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid(1, &a, &b, &c, &d) == 0 || (c & kOsXsave) == 0) return false;
  unsigned low = 0, high = 0;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (low & kKept) == kKept && __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 &&
         (b & kAvx512f) != 0;
}
#endif

// What a start fills of the heap at least.
constexpr std::size_t kStartHeap = std::size_t{12} << 20;
constexpr std::size_t kHugePage = std::size_t{1} << 21;

// Since Linux 5.14; older kernels refuse them, and pages come one after the other, which took a
// tenth of a start.
enum Populate : int { kRead = 22, kWrite = 23 };

void populate(const void* start, std::size_t size, Populate how) {
  const auto page = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto first = (reinterpret_cast<std::uintptr_t>(start) + page - 1) / page * page;
  const auto past = (reinterpret_cast<std::uintptr_t>(start) + size) / page * page;
  if (first < past) madvise(reinterpret_cast<void*>(first), past - first, how);
}

void populate_heap() {
  mallopt(M_MMAP_MAX, 0);
  mallopt(M_TRIM_THRESHOLD, std::numeric_limits<int>::max());
  void* const heap = std::malloc(kStartHeap);
  if (heap == nullptr) return;
  const auto start = reinterpret_cast<std::uintptr_t>(heap) / kHugePage * kHugePage + kHugePage;
  const auto past = (reinterpret_cast<std::uintptr_t>(heap) + kStartHeap) / kHugePage * kHugePage;
  if (start < past) madvise(reinterpret_cast<void*>(start), past - start, MADV_HUGEPAGE);
  populate(heap, kStartHeap, kWrite);
  std::free(heap);
}

// Pages of the runtime's code that were read so far: what an inference needs comes back from the
// file. A third of what a start reads, the definitions of all operators, is not needed again.
int let_go_of_code(dl_phdr_info* object, std::size_t, void*) {
  const auto in_it = reinterpret_cast<std::uintptr_t>(&OrtGetApiBase);
  bool is_runtime = false;
  for (int i = 0; i < object->dlpi_phnum; ++i) {
    const auto& segment = object->dlpi_phdr[i];
    const auto start = object->dlpi_addr + segment.p_vaddr;
    is_runtime |= segment.p_type == PT_LOAD && in_it >= start && in_it - start < segment.p_memsz;
  }
  for (int i = 0; is_runtime && i < object->dlpi_phnum; ++i) {
    const auto& segment = object->dlpi_phdr[i];
    if (segment.p_type != PT_LOAD || (segment.p_flags & PF_W) != 0) continue;
    const auto* start = reinterpret_cast<const unsigned char*>(object->dlpi_addr + segment.p_vaddr);
    fleetcut_let_go({start, start + segment.p_memsz});
  }
  return is_runtime ? 1 : 0;
}

class Onnxruntime : public Engine {
 public:
  Onnxruntime(const fleetcut_program& program, int threads)
      : api_(OrtGetApiBase()->get_api(kApiVersion)), input_shape_(wide(program.input_shape)),
        output_shape_(wide(program.output_shape)) {
    if (api_ == nullptr) throw std::runtime_error("this ONNX Runtime lacks its interface of 1.6");
    populate_heap();
    call(kCreateCpuMemoryInfo, int{kDeviceAllocator}, int{kMemTypeDefault}, &memory_);
    const Blocked* blocked = head(program.model);
    if (blocked == nullptr) {
      open(program.model.start, size_of(program.model), threads);
      return;
    }
    require_blocks_of_16();
    open(program.model.start + blocked->graph_offset, blocked->graph_size, threads);
    populate(program.model.start, size_of(program.model), kRead);
    const auto* weights = reinterpret_cast<const Weight*>(blocked + 1);
    for (std::uint64_t i = 0; i < blocked->weights; ++i) {
      const Weight& weight = weights[i];
      auto* values = reinterpret_cast<const float*>(program.model.start + weight.offset);
      void* const tensor = tensor_of(const_cast<float*>(values), weight.sizes, weight.rank);
      call(kBindInput, binding_, input_name(i + 1), tensor);
    }
  }

  void set_input(Floats& values) override {
    void* const tensor = tensor_of(values.data(), input_shape_.data(), input_shape_.size());
    call(kBindInput, binding_, input_name_, tensor);
    release(input_);
    input_ = tensor;
  }

  std::int64_t infer_ns(Floats& output) override {
    if (output.data() != bound_) {
      void* const tensor = tensor_of(output.data(), output_shape_.data(), output_shape_.size());
      call(kBindOutput, binding_, output_name_, tensor);
      release(output_);
      output_ = tensor;
      bound_ = output.data();
    }
    const auto start = Clock::now();
    call(kRunWithBinding, session_, static_cast<const void*>(nullptr), binding_);
    return ns_since(start);
  }

 private:
  using Wide = std::vector<std::int64_t>;

  static Wide wide(const fleetcut_shape& shape) {
    return Wide(shape.sizes, shape.sizes + shape.rank);
  }

  static const Blocked* head(const fleetcut_bytes& model) {
    if (size_of(model) < sizeof(Blocked) ||
        std::memcmp(model.start, kMagic, sizeof(Blocked::magic)) != 0) {
      return nullptr;
    }
    return reinterpret_cast<const Blocked*>(model.start);
  }

  static void require_blocks_of_16() {
#if defined(__x86_64__)
    if (!has_avx512f()) {
      throw std::runtime_error(
          "this program's weights are arranged for AVX-512, which this CPU does not have: deploy "
          "what was built for x86-64");
    }
#endif
  }

  // One function of the runtime's table. Throws what it says.
  template <typename... Arguments>
  void call(Function function, Arguments... arguments) const {
    using Called = void* (*)(Arguments...);
    void* const status = reinterpret_cast<Called>(api_[function])(arguments...);
    if (status == nullptr) return;
    using Message = const char* (*)(const void*);
    throw std::runtime_error(std::string("ONNX Runtime: ") +
                             reinterpret_cast<Message>(api_[kGetErrorMessage])(status));
  }

  void release(void* value) const {
    if (value != nullptr) reinterpret_cast<void (*)(void*)>(api_[kReleaseValue])(value);
  }

  // session_ and binding_ live as long as the process: to free them only delays its end.
  void open(const unsigned char* graph, std::size_t size, int threads) {
    void *environment = nullptr, *options = nullptr;
    call(kCreateEnv, int{kLoggingError}, "fleetcut", &environment);
    call(kCreateSessionOptions, &options);
    call(kSetIntraOpNumThreads, options, threads);
    call(kSetInterOpNumThreads, options, 1);
    for (const char* key : {"session.use_ort_model_bytes_directly",
                            "session.use_ort_model_bytes_for_initializers"}) {
      call(kAddSessionConfigEntry, options, key, "1");
    }
    call(kAddSessionConfigEntry, options, "session.load_model_format", "ORT");
    call(kCreateSessionFromArray, environment, static_cast<const void*>(graph), size, options,
         &session_);
    call(kCreateIoBinding, session_, &binding_);
    dl_iterate_phdr(let_go_of_code, nullptr);
    call(kGetAllocatorWithDefaultOptions, &allocator_);
    input_name_ = input_name(0);
    call(kSessionGetOutputName, session_, std::size_t{0}, allocator_, &output_name_);
  }

  char* input_name(std::size_t index) const {
    char* name = nullptr;
    call(kSessionGetInputName, session_, index, allocator_, &name);
    return name;
  }

  void* tensor_of(float* values, const std::int64_t* sizes, std::size_t rank) const {
    std::size_t bytes = sizeof(float);
    for (std::size_t i = 0; i < rank; ++i) bytes *= static_cast<std::size_t>(sizes[i]);
    void* tensor = nullptr;
    call(kCreateTensorWithDataAsOrtValue, memory_, static_cast<void*>(values), bytes, sizes, rank,
         int{kFloat}, &tensor);
    return tensor;
  }

  const void* const* api_;
  Wide input_shape_, output_shape_;
  void *memory_ = nullptr, *allocator_ = nullptr, *session_ = nullptr, *binding_ = nullptr;
  void *input_ = nullptr, *output_ = nullptr;
  char *input_name_ = nullptr, *output_name_ = nullptr;
  const float* bound_ = nullptr;
};

}  // namespace

const char* const kRuntime = "onnxruntime";

std::unique_ptr<Engine> load(const fleetcut_program& program, int threads) {
  // Else it keeps a database in the home folder and sends events to its makers (its Privacy.md).
  setenv("ORT_DISABLE_TELEMETRY", "1", 0);
  return std::make_unique<Onnxruntime>(program, threads);
}

}  // namespace fleetcut
