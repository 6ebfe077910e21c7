// oneDNN's convolution and its two gradients as XLA custom calls.
//
// Images are NHWC and kernels HWIO, straight from XLA's buffers; the kernel,
// which is small, is reordered into whatever layout oneDNN runs fastest. Images
// are float32 or bfloat16, and a kernel is of their type or float32: rounded
// as it is reordered, and its gradient is summed and returned in float32.
// Members of a batch run one after the other in one call, with no copies: sliced
// apart and stacked by XLA each would be copied twice.
// XLA runs independent calls side by side, so calls take turns and the scratch
// memory is ours: the library's own, shared, would be overwritten.

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <vector>

#include "oneapi/dnnl/dnnl.hpp"
#include "xla/ffi/api/ffi.h"

std::mutex& Turn() {
  static std::mutex* turn = new std::mutex;  // outlives XLA's threads
  return *turn;
}

namespace {

namespace ffi = xla::ffi;
using dnnl::memory;
using Type = memory::data_type;
using Shape = ffi::Span<const int64_t>;

enum Kind { kForward, kGradInput, kGradKernel };

// Memory that only grows.
class Arena {
 public:
  void* Get(size_t bytes) {
    if (bytes > size_) {
      size_ = (bytes + 4095) / 4096 * 4096;
      data_.reset();  // before the new one, so that both are never held
      data_.reset(std::aligned_alloc(4096, size_));
      if (data_ == nullptr) {
        size_ = 0;
        throw std::bad_alloc();
      }
    }
    return data_.get();
  }

 private:
  std::unique_ptr<void, decltype(&std::free)> data_{nullptr, std::free};
  size_t size_ = 0;
};

// A primitive with the scratch memory that it needs.
struct Step {
  dnnl::primitive primitive;
  memory::desc scratch;

  Step() = default;
  template <typename Desc>
  void Set(const Desc& desc) {
    primitive = dnnl::primitive(desc.get());
    scratch = desc.scratchpad_desc();
  }
};

// How a kernel gradient lays images side by side: `images` of them in one row,
// each followed by columns of zeros up to the pitch.
struct Rows {
  int64_t images = 1, x_pitch = 0, y_pitch = 0;
};

// A convolution of one shape, ready to run.
struct Plan {
  memory::desc x, y, kernel, blocked;
  Step convolve, reorder;
  Rows rows;
  int64_t parts = 1;  // of the batch; x and y are those of one part
};

struct Library {
  dnnl::engine engine{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream{engine};
  std::map<std::vector<int64_t>, Plan> plans;
  Arena scratch, weights, x_rows, y_rows;
  std::vector<dnnl::stream> streams;  // one for each part of a batch

  memory Wrap(const memory::desc& desc, const void* data) {
    return memory(desc, engine, const_cast<void*>(data));
  }

  void Run(const Step& step, std::unordered_map<int, memory> args) {
    args.emplace(DNNL_ARG_SCRATCHPAD,
                 Wrap(step.scratch, scratch.Get(step.scratch.get_size())));
    step.primitive.execute(stream, args);
  }
};

Library& Lib() {
  static Library* library = new Library;  // outlives XLA's threads
  return *library;
}

bool Has(dnnl::cpu_isa isa) {  // its bits hold those of what it builds on
  const int bits = static_cast<int>(isa);
  return (static_cast<int>(dnnl::get_effective_cpu_isa()) & bits) == bits;
}

bool HasAvx512() { return Has(dnnl::cpu_isa::avx512_core); }

// The plain implementation where it beats oneDNN's first choice, by a fixed rule
// and not by timing, so that every run computes the same bits. Measured for
// oneDNN 3.2 with AVX-512, in ms on one core, batch 64, 32x32: input gradient
// 16 -> 16 channels 1.4 for 1.9, with stride 2 to 32 channels 0.8 for 1.9, of a
// 1x1 kernel 0.1 for 1.0; from 128 channels the first choice wins.
template <typename Make>
auto Choose(Make make, Kind kind, Type type, Shape k, int64_t stride,
            int64_t groups) {
  auto desc = make();
  const bool depthwise = groups > 1 && k[2] == 1, narrow = k[2] <= 32;
  if (type != Type::f32) {
    // 32 channels, 32x32 and stride 2, batch 128: 45 ms by the first choice.
    if (!depthwise || kind != kGradInput || stride == 1) return desc;
    do {
      if (std::string(desc.impl_info_str()).rfind("jit_dw", 0) == 0) {
        return desc;
      }
    } while (desc.next_impl());
    return make();
  }
  const bool plain = stride > 1 ? kind == kGradInput || k[0] == 1 || narrow
                                : kind == kGradInput && narrow;
  if (!plain || depthwise || !HasAvx512()) return desc;
  do {
    if (std::string(desc.impl_info_str()) == "jit:avx512_core") return desc;
  } while (desc.next_impl());
  // next_impl has moved it, and any copy, on to the reference, which takes
  // hundreds of times as long.
  return make();
}

// The kernel gradient in bfloat16 is one matrix product a row of the output,
// whose inner length is the row, and a tile of AMX wants 32 pixels: 16 images
// side by side give the same sum 2 to 6 times faster where rows are of 8 pixels
// or fewer. Milliseconds on one thread, batch 128: 64 channels at 8x8 1.2 and
// 0.7, 128 at 4x4 2.8 and 0.5, 512 at 4x4 77 and 14, the copies included.
Rows MakeRows(Type type, Shape x, Shape k, Shape y, int64_t stride,
              int64_t padding) {
  Rows rows;
  const bool square = k[0] == k[1] && k[0] >= stride + padding;
  if (type != Type::bf16 || !Has(dnnl::cpu_isa::avx512_core_amx) || !square ||
      y[2] > 8) {
    return rows;
  }
  while (rows.images < 16 && x[0] % (2 * rows.images) == 0) rows.images *= 2;
  if (rows.images == 1) return rows;
  const int64_t last = (y[2] - 1) * stride - padding + k[1];  // column read
  rows.y_pitch = y[2];
  while (rows.y_pitch * stride < std::max(x[2] + padding, last)) ++rows.y_pitch;
  rows.x_pitch = rows.y_pitch * stride;
  return rows;
}

// [images, height, width] of pixels to [images / side, height, side, pitch].
void SideBySide(const char* from, char* to, int64_t images, Shape shape,
                int64_t side, int64_t pitch) {
  const int64_t height = shape[1], rows = images * height;
  const int64_t pixel = shape[3] * 2, row = shape[2] * pixel;
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t y = i / side % height;
    const int64_t n = i / side / height * side + i % side;
    char* out = to + i * pitch * pixel;
    std::memcpy(out, from + (n * height + y) * row, row);
    std::memset(out + row, 0, pitch * pixel - row);
  }
}

// A kernel gradient in bfloat16 is the sum of those of up to eight parts of the
// batch, each computed by one thread: in oneDNN's own division of the work
// threads wait for each other in a loop at every row, which takes up to a hundred
// times as long where another process has one of the cores. The parts depend on
// the shape alone, so the sum does not depend on the number of threads. Kernels
// above a megabyte have as many parts as there are threads, and if these are many
// they are left to oneDNN, which divides them by channels.
int64_t CountParts(Type type, Shape k, int64_t images) {
  const int64_t bytes = 4 * k[0] * k[1] * k[2] * k[3];
  if (type != Type::bf16) return 1;
  const bool large = bytes > (1 << 20);
  const int64_t most = large ? omp_get_max_threads() : 8;
  int64_t parts = 1;
  while (parts < most && images % (2 * parts) == 0) parts *= 2;
  if (large && (parts < most || parts * bytes > (1 << 25))) return 1;
  return parts;
}

// Primitives that are made in its life run on one thread.
class OneThread {
 public:
  explicit OneThread(bool one) : before_(omp_get_max_threads()) {
    if (one) omp_set_num_threads(1);
  }
  ~OneThread() { omp_set_num_threads(before_); }

 private:
  int before_;
};

Plan MakePlan(Kind kind, Type type, Type kernel_type, Shape x, Shape k, Shape y,
              int64_t stride, int64_t padding, int64_t groups) {
  using Tag = memory::format_tag;
  const auto direct = dnnl::algorithm::convolution_direct;
  const memory::dims strides{stride, stride}, pads{padding, padding};
  const memory::dims dims =
      groups == 1 ? memory::dims{k[3], k[2], k[0], k[1]}
                  : memory::dims{groups, k[3] / groups, k[2], k[0], k[1]};
  const bool of_kernel = kind == kGradKernel;
  const memory::desc any(dims, of_kernel ? Type::f32 : type, Tag::any);
  const memory::desc any_forward(dims, type, Tag::any);
  const dnnl::engine& engine = Lib().engine;
  dnnl::primitive_attr attr;
  attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);

  Plan plan;
  if (of_kernel) plan.rows = MakeRows(type, x, k, y, stride, padding);
  const int64_t side = plan.rows.images;
  const bool merged = side > 1;
  const int64_t x_width = merged ? side * plan.rows.x_pitch : x[2];
  const int64_t y_width = merged ? side * plan.rows.y_pitch : y[2];
  if (of_kernel) plan.parts = CountParts(type, k, x[0] / side);
  const int64_t images = x[0] / side / plan.parts;
  memory::dims right = pads;
  if (merged) right[1] = (y_width - 1) * stride + k[1] - x_width - padding;
  plan.x = memory::desc({images, x[3], x[1], x_width}, type, Tag::nhwc);
  plan.y = memory::desc({images, y[3], y[1], y_width}, type, Tag::nhwc);
  plan.kernel =
      memory::desc(dims, kernel_type, groups == 1 ? Tag::hwio : Tag::hwigo);
  const auto make_forward = [&] {
    return dnnl::convolution_forward::primitive_desc(
        engine, dnnl::prop_kind::forward_training, direct, plan.x, any_forward,
        plan.y, strides, pads, right, attr);
  };
  if (kind == kForward) {
    const auto forward = Choose(make_forward, kind, type, k, stride, groups);
    plan.blocked = forward.weights_desc();
    plan.convolve.Set(forward);
  } else if (kind == kGradInput) {
    // The hint outlives Choose: next_impl reads it again through a pointer.
    const auto hint = make_forward();
    const auto make = [&] {
      return dnnl::convolution_backward_data::primitive_desc(
          engine, direct, plan.x, any, plan.y, strides, pads, pads, hint, attr);
    };
    const auto backward = Choose(make, kind, type, k, stride, groups);
    plan.blocked = backward.weights_desc();
    plan.convolve.Set(backward);
  } else {
    const OneThread guard(plan.parts > 1);
    const dnnl::convolution_backward_weights::primitive_desc backward(
        engine, direct, plan.x, any, plan.y, strides, pads, right,
        make_forward(), attr);
    plan.blocked = backward.diff_weights_desc();
    plan.convolve.Set(backward);
  }
  if (plan.blocked != plan.kernel || plan.parts > 1 || merged) {
    plan.reorder.Set(dnnl::reorder::primitive_desc(
        engine, of_kernel ? plan.blocked : plan.kernel, engine,
        of_kernel ? plan.kernel : plan.blocked, attr));
  }
  return plan;
}

// An array of each member of a batch, or one that all share.
struct Operand {
  Shape shape;  // of one member
  Type type;
  const char* data;
  int64_t step;  // bytes from one member to the next

  int64_t Bytes() const {
    int64_t bytes = type == Type::bf16 ? 2 : 4;
    for (int64_t n : shape) bytes *= n;
    return bytes;
  }

  explicit Operand(const ffi::AnyBuffer& buffer)
      : shape(buffer.dimensions().end() - 4, 4),
        type(buffer.element_type() == ffi::BF16 ? Type::bf16 : Type::f32),
        data(static_cast<const char*>(buffer.untyped_data())),
        step(0) {
    if (buffer.dimensions().size() == 5) step = Bytes();
  }
};

int64_t Aligned(int64_t bytes) { return (bytes + 4095) / 4096 * 4096; }

// The kernel gradient by parts of the batch, in the plan's layout.
void* InParts(Library& lib, const Plan& plan, const Operand& x,
              const char* x_data, const Operand& y, const char* y_data) {
  const int64_t parts = plan.parts, images = x.shape[0] / parts;
  const int64_t scratch_size = Aligned(plan.convolve.scratch.get_size());
  const int64_t sum_size = Aligned(plan.blocked.get_size());
  const int64_t x_size = plan.x.get_size(), y_size = plan.y.get_size();
  const Rows& rows = plan.rows;
  const bool merged = rows.images > 1;
  char* scratch = static_cast<char*>(lib.scratch.Get(parts * scratch_size));
  char* sums = static_cast<char*>(lib.weights.Get(parts * sum_size));
  char* x_rows = static_cast<char*>(lib.x_rows.Get(merged * parts * x_size));
  char* y_rows = static_cast<char*>(lib.y_rows.Get(merged * parts * y_size));
  while (static_cast<int64_t>(lib.streams.size()) < parts) {
    lib.streams.emplace_back(lib.engine);
  }
  std::atomic<bool> failed{false};
  // One part is made for all threads, and would wait for them for ever in here.
#pragma omp parallel for schedule(static) if (parts > 1)
  for (int64_t i = 0; i < parts; ++i) {
    try {
      const char* in = x_data + i * (x.Bytes() / parts);
      const char* out = y_data + i * (y.Bytes() / parts);
      if (merged) {
        SideBySide(in, x_rows + i * x_size, images, x.shape, rows.images,
                   rows.x_pitch);
        SideBySide(out, y_rows + i * y_size, images, y.shape, rows.images,
                   rows.y_pitch);
        in = x_rows + i * x_size;
        out = y_rows + i * y_size;
      }
      plan.convolve.primitive.execute(
          lib.streams[i],
          {{DNNL_ARG_SRC, lib.Wrap(plan.x, in)},
           {DNNL_ARG_DIFF_DST, lib.Wrap(plan.y, out)},
           {DNNL_ARG_DIFF_WEIGHTS, lib.Wrap(plan.blocked, sums + i * sum_size)},
           {DNNL_ARG_SCRATCHPAD,
            lib.Wrap(plan.convolve.scratch, scratch + i * scratch_size)}});
    } catch (const std::exception&) {
      failed = true;
    }
  }
  if (failed) throw std::runtime_error("a part of a kernel gradient failed");
  const int64_t n = plan.blocked.get_size() / 4;
#pragma omp parallel for schedule(static) if (n > (1 << 16))
  for (int64_t j = 0; j < n; ++j) {
    float total = 0;
    for (int64_t i = 0; i < parts; ++i) {
      total += reinterpret_cast<const float*>(sums + i * sum_size)[j];
    }
    reinterpret_cast<float*>(sums)[j] = total;
  }
  return sums;
}

void Convolve(Kind kind, int64_t members, const Operand& x, const Operand& k,
              const Operand& y, int64_t stride, int64_t padding,
              int64_t groups) {
  Library& lib = Lib();
  std::lock_guard<std::mutex> lock(Turn());
  std::vector<int64_t> key{kind,   static_cast<int64_t>(x.type),
                           static_cast<int64_t>(k.type),
                           stride, padding, groups};
  for (Shape shape : {x.shape, k.shape, y.shape}) {
    key.insert(key.end(), shape.begin(), shape.end());
  }
  auto found = lib.plans.find(key);
  if (found == lib.plans.end()) {
    Plan plan = MakePlan(kind, x.type, k.type, x.shape, k.shape, y.shape,
                         stride, padding, groups);
    found = lib.plans.emplace(std::move(key), std::move(plan)).first;
  }
  const Plan& plan = found->second;

  const bool reordered = static_cast<bool>(plan.reorder.primitive);
  for (int64_t i = 0; i < members; ++i) {
    const memory kernel = lib.Wrap(plan.kernel, k.data + i * k.step);
    if (kind == kGradKernel && (plan.parts > 1 || plan.rows.images > 1)) {
      const memory sum =
          lib.Wrap(plan.blocked, InParts(lib, plan, x, x.data + i * x.step, y,
                                         y.data + i * y.step));
      lib.Run(plan.reorder, {{DNNL_ARG_FROM, sum}, {DNNL_ARG_TO, kernel}});
      lib.stream.wait();
      continue;
    }
    const memory blocked =
        reordered
            ? lib.Wrap(plan.blocked, lib.weights.Get(plan.blocked.get_size()))
            : kernel;
    const memory in = lib.Wrap(plan.x, x.data + i * x.step);
    const memory out = lib.Wrap(plan.y, y.data + i * y.step);
    if (reordered && kind != kGradKernel) {
      lib.Run(plan.reorder, {{DNNL_ARG_FROM, kernel}, {DNNL_ARG_TO, blocked}});
    }
    if (kind == kForward) {
      lib.Run(plan.convolve, {{DNNL_ARG_SRC, in},
                              {DNNL_ARG_WEIGHTS, blocked},
                              {DNNL_ARG_DST, out}});
    } else if (kind == kGradInput) {
      lib.Run(plan.convolve, {{DNNL_ARG_DIFF_DST, out},
                              {DNNL_ARG_WEIGHTS, blocked},
                              {DNNL_ARG_DIFF_SRC, in}});
    } else {
      lib.Run(plan.convolve, {{DNNL_ARG_SRC, in},
                              {DNNL_ARG_DIFF_DST, out},
                              {DNNL_ARG_DIFF_WEIGHTS, blocked}});
    }
    if (reordered && kind == kGradKernel) {
      lib.Run(plan.reorder, {{DNNL_ARG_FROM, blocked}, {DNNL_ARG_TO, kernel}});
    }
    lib.stream.wait();
  }
}

// The operands are x and kernel, y's gradient and kernel, or x and y's
// gradient; the result is the third of (x, kernel, y). A leading fifth axis of
// the result, and of one operand or both, is that of the members.
template <Kind kind>
ffi::Error Call(ffi::AnyBuffer first, ffi::AnyBuffer second,
                ffi::Result<ffi::AnyBuffer> result, int64_t stride,
                int64_t padding, int64_t groups) {
  const Shape shape = result->dimensions();
  const int64_t members = shape.size() == 5 ? shape[0] : 1;
  const Operand a(first), b(second), r(*result);
  try {
    if (kind == kForward) {
      Convolve(kind, members, a, b, r, stride, padding, groups);
    } else if (kind == kGradInput) {
      Convolve(kind, members, r, b, a, stride, padding, groups);
    } else {
      Convolve(kind, members, a, r, b, stride, padding, groups);
    }
  } catch (const std::exception& error) {
    return ffi::Error::Internal(std::string("oneDNN: ") + error.what());
  }
  return ffi::Error::Success();
}

constexpr auto kBinding = [] {
  return ffi::Ffi::Bind()
      .Arg<ffi::AnyBuffer>()
      .Arg<ffi::AnyBuffer>()
      .Ret<ffi::AnyBuffer>()
      .Attr<int64_t>("stride")
      .Attr<int64_t>("padding")
      .Attr<int64_t>("groups");
};

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(Conv, Call<kForward>, kBinding());
XLA_FFI_DEFINE_HANDLER_SYMBOL(ConvGradInput, Call<kGradInput>, kBinding());
XLA_FFI_DEFINE_HANDLER_SYMBOL(ConvGradKernel, Call<kGradKernel>, kBinding());

// Whether the rules measured with AVX-512 hold here.
extern "C" int Avx512() { return HasAvx512(); }

// Whether bfloat16 is faster than float32: by AVX512_BF16 or by AMX.
extern "C" int Bfloat16() {
  return Has(dnnl::cpu_isa::avx512_core_bf16);
}
