// Convolutions of integer codes as XLA custom calls, exact to the last bit.
//
// Codes are int8 or uint8, kernels int8, sums int32, by oneDNN. A layer of
// docs/integer.md is one call: its input is brought to codes, convolved, its
// sums are rescaled in 64 bits, a residual is added, and what comes out is
// narrow again. So is a layer of deploy/integer.py, with floats in between. A
// call goes through the batch by a few images at a time, each part on one
// thread, so that its sums stay in that core's cache and never reach memory.

#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <numeric>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <unordered_map>
#include <vector>

#include "common.h"
#include "oneapi/dnnl/dnnl.hpp"

namespace {

using dnnl::memory;
using Shape = ffi::Span<const int64_t>;
using Type = ffi::DataType;

constexpr int64_t kBlock = 2048;    // elements, about; in a core's first cache
constexpr int64_t kPart = 1 << 17;  // sums of a part of the batch, about
constexpr int64_t kValues = 256;    // of a byte

typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));
typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int64_t Longs __attribute__((vector_size(4 * kLanes)));  // half as many
typedef uint64_t Words __attribute__((vector_size(4 * kLanes)));

template <typename T>
struct VectorOf {
  typedef T type __attribute__((vector_size(sizeof(T) * kLanes)));
};
template <typename T>
using Of = typename VectorOf<T>::type;

// By way of 16 bits, since GCC 12 takes 8 bits apart one by one.
template <typename T>
inline Ints Load(const T* p) {
  constexpr bool sign = std::is_signed<T>::value;
  Of<T> in;
  std::memcpy(&in, p, sizeof(in));
#ifdef __AVX512F__
  if constexpr (sizeof(T) == 1) {
    return sign ? (Ints)_mm512_cvtepi8_epi32((__m128i)in)
                : (Ints)_mm512_cvtepu8_epi32((__m128i)in);
  } else if constexpr (sizeof(T) == 2) {
    return sign ? (Ints)_mm512_cvtepi16_epi32((__m256i)in)
                : (Ints)_mm512_cvtepu16_epi32((__m256i)in);
  }
#endif
  if constexpr (sizeof(T) == 1) {
    using Half = std::conditional_t<sign, int16_t, uint16_t>;
    return __builtin_convertvector(__builtin_convertvector(in, Of<Half>), Ints);
  } else {
    return __builtin_convertvector(in, Ints);
  }
}

template <typename T>
inline void Store(T* p, Ints v) {
  Of<T> out;
#ifdef __AVX512F__
  if constexpr (sizeof(T) == 1) {
    out = (Of<T>)_mm512_cvtepi32_epi8((__m512i)v);
  } else if constexpr (sizeof(T) == 2) {
    out = (Of<T>)_mm512_cvtepi32_epi16((__m512i)v);
  } else {
    out = (Of<T>)v;
  }
#else
  if constexpr (sizeof(T) == 1) {
    out = __builtin_convertvector(__builtin_convertvector(v, Of<int16_t>),
                                  Of<T>);
  } else {
    out = __builtin_convertvector(v, Of<T>);
  }
#endif
  std::memcpy(p, &out, sizeof(out));
}

// The products of the even ones of 32 bits, with their signs, in 64 bits.
inline Longs Products(Ints a, Ints b) {
#if defined(__AVX512F__)
  return (Longs)_mm512_mul_epi32((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return (Longs)_mm256_mul_epi32((__m256i)a, (__m256i)b);
#else
  return (((Longs)a << 32) >> 32) * (((Longs)b << 32) >> 32);
#endif
}

// The odd ones of 32 bits in the even ones' places. A shuffle has another port
// of the processor than a shift, which has the products'.
inline Ints Odd(Ints v) {
#if defined(__AVX512F__)
  return (Ints)_mm512_movehdup_ps((__m512)v);
#else
  return (Ints)_mm256_movehdup_ps((__m256)v);
#endif
}

// Calls run(from, more, to, n) for whole periods of a tensor, a few at a time,
// and for what is left over, filled up to a period. `more` is read if `adds`.
template <typename In, typename More, typename Out, typename Run>
void Periods(int64_t period, int64_t count, const In* from, const More* more,
             bool adds, Out* to, Run run) {
  const int64_t step = std::max<int64_t>(1, kBlock / period) * period;
  const int64_t whole = count / period * period, rest = count - whole;
  for (int64_t i = 0; i < whole; i += step) {
    run(from + i, more + i, to + i, std::min(step, whole - i));
  }
  if (rest == 0) return;
  std::vector<In> last(period);
  std::vector<More> added(period);
  std::vector<Out> made(period);
  std::copy_n(from + whole, rest, last.begin());
  if (adds) std::copy_n(more + whole, rest, added.begin());
  run(last.data(), added.data(), made.data(), period);
  std::copy_n(made.begin(), rest, to + whole);
}

// clip((x * multiplier + offset) >> shift, low, high), by channel.
class Rule {
 public:
  Rule() = default;
  Rule(const int32_t* multipliers, const int64_t* offsets, int64_t channels,
       const int64_t* shift_low_high)
      : shift_(shift_low_high[0]),
        low_(shift_low_high[1]),
        high_(shift_low_high[2]),
        period_(std::lcm<int64_t>(channels, kLanes)) {
    // Of each vector: its multipliers, those of the odd lanes, the offsets of
    // the even ones and of the odd ones.
    numbers_.resize(2 * period_);
    for (int64_t i = 0; i < period_; ++i) {
      int64_t* of = numbers_.data() + 2 * (i - i % kLanes);
      const int64_t lane = i % kLanes, half = lane / 2 + lane % 2 * kLanes / 2;
      reinterpret_cast<int32_t*>(of)[lane] = multipliers[i % channels];
      if (lane % 2) of[kLanes / 2 + lane / 2] = multipliers[i % channels];
      of[kLanes + half] = offsets[i % channels];
    }
  }

  explicit operator bool() const { return period_ > 0; }
  bool has_sign() const { return low_ < 0; }

  // Rescales `count` values, the first of which is of channel 0. If `adds`,
  // what stands in `plus` is added, and what is below 0 becomes 0.
  template <bool adds, typename In, typename Out>
  void Apply(const In* from, const int32_t* plus, Out* to,
             int64_t count) const {
    Periods(period_, count, from, plus, adds, to,
            [&](const In* x, const int32_t* more, Out* y, int64_t n) {
              Block<adds>(x, more, y, n);
            });
  }

 private:
  template <bool adds, typename In, typename Out>
  void Block(const In* from, const int32_t* plus, Out* to,
             int64_t count) const {
    if (shift_ < 32) {
      Block<adds, false>(from, plus, to, count);
    } else {
      Block<adds, true>(from, plus, to, count);
    }
  }

  template <bool adds, bool high_half, typename In, typename Out>
  void Block(const In* from, const int32_t* plus, Out* to,
             int64_t count) const {
    const int64_t shift = shift_, period = period_;
    const Longs low = Longs{} + low_, high = Longs{} + high_;
    const int32_t low32 = low_, high32 = high_;
    for (int64_t v = 0; v < period; v += kLanes) {
      struct {
        Ints even, odd;
        Longs even_offset, odd_offset;
      } number;
      std::memcpy(&number, numbers_.data() + 2 * v, sizeof(number));
      for (int64_t i = v; i < count; i += period) {
        const Ints x = Load(from + i);
        Longs even = Products(x, number.even) + number.even_offset;
        Longs odd = Products(Odd(x), number.odd) + number.odd_offset;
        Ints y;
        if (high_half) {  // its upper 32 bits are all that stays
          y = Odd((Ints)even) & (Ints)(Longs{} + 0xffffffff);
          y |= (Ints)((Words)odd & 0xffffffff00000000u);
          y >>= static_cast<int32_t>(shift - 32);
          y = y < low32 ? Ints{} + low32 : y;
          y = y > high32 ? Ints{} + high32 : y;
        } else {
          even >>= shift;
          odd >>= shift;
          even = even < low ? low : even;
          odd = odd < low ? low : odd;
          even = even > high ? high : even;
          odd = odd > high ? high : odd;
          y = (Ints)((even & 0xffffffff) | (odd << 32));
        }
        if (adds) {
          y += Load(plus + i);
          y = y < 0 ? Ints{} : y;
        }
        Store(to + i, y);
      }
    }
  }

  int64_t shift_ = 0, low_ = 0, high_ = 0, period_ = 0;
  std::vector<int64_t> numbers_;
};

// Calls run(T()) with the type of a tensor's elements.
template <typename Run>
void ByType(Type type, Run run) {
  switch (type) {
    case ffi::U8: return run(uint8_t());
    case ffi::S8: return run(int8_t());
    case ffi::U16: return run(uint16_t());
    case ffi::S16: return run(int16_t());
    case ffi::S32: return run(int32_t());
    default: throw std::runtime_error("a tensor is of no type for integers");
  }
}

int64_t Bytes(Type type) {
  int64_t bytes = 4;
  if (type == ffi::F32) return bytes;
  ByType(type, [&](auto t) { bytes = sizeof(t); });
  return bytes;
}

// Memory that only grows.
class Arena {
 public:
  Arena() = default;
  Arena(Arena&& other) {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
  }
  ~Arena() { std::free(data_); }
  void* Get(int64_t bytes) {
    if (bytes > size_) {
      size_ = (bytes + 4095) / 4096 * 4096;
      std::free(data_);
      data_ = std::aligned_alloc(4096, size_);
      if (data_ == nullptr) {
        size_ = 0;
        throw std::bad_alloc();
      }
    }
    return data_;
  }

 private:
  void* data_ = nullptr;
  int64_t size_ = 0;
};

// Primitives that are made or run in its life have one thread.
class OneThread {
 public:
  OneThread() { omp_set_num_threads(1); }
  ~OneThread() { omp_set_num_threads(before_); }

 private:
  int before_ = omp_get_max_threads();
};

// A convolution of one shape, ready to run on one thread.
struct Plan {
  memory::desc x, y, kernel, blocked, scratch, reorder_scratch;
  dnnl::primitive convolve, reorder;
};

// What one thread works in. It keeps the last plan's arguments: to make them
// anew takes longer than a small convolution.
struct Desk {
  dnnl::stream stream;
  Arena scratch, codes, sums;
  const Plan* plan = nullptr;
  std::unordered_map<int, memory> arguments;

  explicit Desk(const dnnl::engine& engine) : stream(engine) {}

  void Convolve(const Plan& next, const void* x, const void* weights,
                int32_t* y) {
    if (plan != &next) {
      const dnnl::engine engine = stream.get_engine();
      arguments.clear();
      for (const auto& [name, desc] :
           {std::pair(DNNL_ARG_SRC, next.x),
            std::pair(DNNL_ARG_WEIGHTS, next.blocked),
            std::pair(DNNL_ARG_DST, next.y),
            std::pair(DNNL_ARG_SCRATCHPAD, next.scratch)}) {
        arguments.emplace(name, memory(desc, engine, DNNL_MEMORY_NONE));
      }
      plan = &next;
    }
    arguments[DNNL_ARG_SRC].set_data_handle(const_cast<void*>(x));
    arguments[DNNL_ARG_WEIGHTS].set_data_handle(const_cast<void*>(weights));
    arguments[DNNL_ARG_DST].set_data_handle(y);
    void* const room = scratch.Get(next.scratch.get_size());
    arguments[DNNL_ARG_SCRATCHPAD].set_data_handle(room);
    next.convolve.execute(stream, arguments);
    stream.wait();
  }
};

struct Library {
  dnnl::engine engine{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream{engine};
  std::map<std::vector<int64_t>, Plan> plans;
  Arena weights, scratch;
  std::vector<Desk> desks;

  memory Wrap(const memory::desc& desc, const void* data) {
    return memory(desc, engine, const_cast<void*>(data));
  }
};

Library& Lib() {
  static Library* library = new Library;  // outlives XLA's threads
  return *library;
}

struct Geometry {
  Shape x, k, y;
  int64_t stride, padding, groups;
};

// The plain kernels with AVX-512 where oneDNN 3.2's first choice is one of
// small matrix products without AMX. Milliseconds on a core with VNNI: 16 to 16
// channels, 8 images of 32x32 0.11 for 0.16; 32 at 16x16, 16 images 0.22 for
// 0.42; 512 at 4x4, 64 images 8.4 for 13.5; 256 at 8x8, 8 images 1.26 for 1.08.
template <typename Make>
auto Choose(Make make) {
  auto desc = make();
  const std::string first = desc.impl_info_str();
  if (first.rfind("brgconv", 0) || first.find("amx") != first.npos) return desc;
  do {
    if (std::string(desc.impl_info_str()).rfind("jit_int8:", 0) == 0) {
      return desc;
    }
  } while (desc.next_impl());
  return make();
}

Plan MakePlan(const Geometry& g, Type codes, int64_t images) {
  using Tag = memory::format_tag;
  using Data = memory::data_type;
  const OneThread guard;
  const auto type = codes == ffi::U8 ? Data::u8 : Data::s8;
  const memory::dims dims =
      g.groups == 1
          ? memory::dims{g.k[3], g.k[2], g.k[0], g.k[1]}
          : memory::dims{g.groups, g.k[3] / g.groups, g.k[2], g.k[0], g.k[1]};
  const dnnl::engine& engine = Lib().engine;
  dnnl::primitive_attr attr;
  attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  Plan plan;
  plan.x = memory::desc({images, g.x[3], g.x[1], g.x[2]}, type, Tag::nhwc);
  plan.y = memory::desc({images, g.y[3], g.y[1], g.y[2]}, Data::s32, Tag::nhwc);
  plan.kernel = memory::desc(dims, Data::s8,
                             g.groups == 1 ? Tag::hwio : Tag::hwigo);
  const memory::dims strides{g.stride, g.stride};
  const memory::dims left{g.padding, g.padding};
  memory::dims right = left;  // what the last output reads beyond the image
  for (int i = 0; i < 2; ++i) {
    right[i] = (g.y[1 + i] - 1) * g.stride + g.k[i] - g.x[1 + i] - g.padding;
  }
  const auto desc = Choose([&] {
    return dnnl::convolution_forward::primitive_desc(
        engine, dnnl::prop_kind::forward_inference,
        dnnl::algorithm::convolution_direct, plan.x,
        memory::desc(dims, Data::s8, Tag::any), plan.y, strides, left, right,
        attr);
  });
  plan.convolve = dnnl::primitive(desc.get());
  plan.scratch = desc.scratchpad_desc();
  plan.blocked = desc.weights_desc();
  if (plan.blocked != plan.kernel) {
    const dnnl::reorder::primitive_desc reorder(engine, plan.kernel, engine,
                                                plan.blocked, attr);
    plan.reorder = dnnl::primitive(reorder.get());
    plan.reorder_scratch = reorder.scratchpad_desc();
  }
  return plan;
}

const Plan& PlanOf(const Geometry& g, Type codes, int64_t images) {
  std::vector<int64_t> key{static_cast<int64_t>(codes), images, g.stride,
                           g.padding, g.groups};
  for (Shape shape : {g.x, g.k, g.y}) {
    key.insert(key.end(), shape.begin() + (shape.begin() != g.k.begin()),
               shape.end());
  }
  auto& plans = Lib().plans;
  auto found = plans.find(key);
  if (found == plans.end()) {
    Plan plan = MakePlan(g, codes, images);
    found = plans.emplace(std::move(key), std::move(plan)).first;
  }
  return found->second;
}

struct Tensor {
  Type type;
  const void* data;
  explicit Tensor(const Any& buffer)
      : type(buffer.element_type()), data(buffer.untyped_data()) {}
  void* at(int64_t element) const {
    return static_cast<char*>(const_cast<void*>(data)) + element * Bytes(type);
  }
};

// What a call computes by parts of the batch.
struct Layer {
  Geometry g;
  Tensor x, kernel, y;
  bool has_sums;  // as its output

  Layer(const Any& x, const Any& kernel, const Any& y, Shape how, bool has_sums)
      : g{x.dimensions(), kernel.dimensions(), y.dimensions(), how[0], how[1],
          how[2]},
        x(x), kernel(kernel), y(y), has_sums(has_sums) {}
  virtual ~Layer() = default;
  virtual Type Codes() const { return x.type; }

  // The codes of some elements of the input, from `first` on.
  virtual const void* Encode(int64_t first, int64_t, Arena&) const {
    return x.at(first);
  }

  // The output of sums, from element `first` on; `more` is room for as many.
  virtual void Finish(const int32_t*, int64_t, int64_t, int32_t*) const {}

  void Part(const Plan& plan, const void* blocked, int64_t image,
            int64_t images, Desk& desk) const {
    const int64_t in = g.x[1] * g.x[2] * g.x[3];
    const int64_t out = g.y[1] * g.y[2] * g.y[3], count = out * images;
    const void* codes = Encode(image * in, images * in, desk.codes);
    int32_t* sums = static_cast<int32_t*>(
        has_sums ? y.at(image * out) : desk.sums.Get(8 * count));
    desk.Convolve(plan, codes, blocked, sums);
    if (!has_sums) Finish(sums, image * out, count, sums + count);
  }

  void Run() const {
    Library& lib = Lib();
    const int64_t n = g.x[0], threads = omp_get_max_threads();
    const int64_t out = std::max<int64_t>(1, g.y[1] * g.y[2] * g.y[3]);
    const int64_t each = std::max<int64_t>(
        1, std::min(kPart / out, (n + threads - 1) / threads));
    const int64_t parts = (n + each - 1) / each, last = n - (parts - 1) * each;
    const Plan& plan = PlanOf(g, Codes(), each);
    const Plan& rest = last == each ? plan : PlanOf(g, Codes(), last);
    const void* blocked = Blocked(plan);
    const void* blocked_rest = rest.blocked == plan.blocked ? blocked : nullptr;
    while (static_cast<int64_t>(lib.desks.size()) < threads) {
      lib.desks.emplace_back(lib.engine);
    }
    std::string failed;
#pragma omp parallel for schedule(static) if (parts > 1)
    for (int64_t i = 0; i < parts - (blocked_rest == nullptr); ++i) {
      try {
        const OneThread guard;
        Part(i < parts - 1 ? plan : rest, blocked, i * each,
             i < parts - 1 ? each : last, lib.desks[omp_get_thread_num()]);
      } catch (const std::exception& error) {
#pragma omp critical
        failed = error.what();
      }
    }
    if (!failed.empty()) throw std::runtime_error(failed);
    if (blocked_rest == nullptr) {
      const OneThread guard;
      Part(rest, Blocked(rest), (parts - 1) * each, last, lib.desks[0]);
    }
  }

  const void* Blocked(const Plan& plan) const {
    if (!plan.reorder) return kernel.data;
    Library& lib = Lib();
    const OneThread guard;
    void* blocked = lib.weights.Get(plan.blocked.get_size());
    plan.reorder.execute(
        lib.stream,
        {{DNNL_ARG_FROM, lib.Wrap(plan.kernel, kernel.data)},
         {DNNL_ARG_TO, lib.Wrap(plan.blocked, blocked)},
         {DNNL_ARG_SCRATCHPAD,
          lib.Wrap(plan.reorder_scratch,
                   lib.scratch.Get(plan.reorder_scratch.get_size()))}});
    lib.stream.wait();
    return blocked;
  }
};

// A step of a program of integers. Without `read` and `table` its input is
// codes.
struct IntegerLayer : Layer {
  Tensor other, table;
  bool looks_up, adds;
  Rule read, write, shortcut;

  IntegerLayer(const Layer& layer, const Any& other, const Any& table,
               bool looks_up, bool adds)
      : Layer(layer), other(other), table(table), looks_up(looks_up),
        adds(adds) {}

  Type Codes() const override {
    if (looks_up) return table.type;
    if (read) return read.has_sign() ? ffi::S8 : ffi::U8;
    return x.type;
  }

  const void* Encode(int64_t first, int64_t count,
                     Arena& arena) const override {
    if (looks_up) {
      auto* to = static_cast<uint8_t*>(arena.Get(count));
      const auto* from = static_cast<const uint8_t*>(x.at(first));
      const auto* codes = static_cast<const uint8_t*>(table.data);
      const int64_t channels = g.x[3];
      for (int64_t i = 0; i < count; i += channels) {
        for (int64_t c = 0; c < channels; ++c) {
          to[i + c] = codes[c * kValues + from[i + c]];
        }
      }
      return to;
    }
    if (!read) return x.at(first);
    void* to = arena.Get(count);
    ByType(x.type, [&](auto t) {
      const auto* from = static_cast<const decltype(t)*>(x.data) + first;
      if (read.has_sign()) {
        read.Apply<false>(from, nullptr, static_cast<int8_t*>(to), count);
      } else {
        read.Apply<false>(from, nullptr, static_cast<uint8_t*>(to), count);
      }
    });
    return to;
  }

  void Finish(const int32_t* sums, int64_t first, int64_t count,
              int32_t* more) const override {
    if (adds) {
      ByType(other.type, [&](auto t) {
        const auto* from = static_cast<const decltype(t)*>(other.data) + first;
        if (shortcut) {
          shortcut.Apply<false>(from, nullptr, more, count);
        } else {
          std::copy_n(from, count, more);
        }
      });
    }
    ByType(y.type, [&](auto t) {
      auto* to = static_cast<decltype(t)*>(const_cast<void*>(y.data)) + first;
      if (adds) {
        write.Apply<true>(sums, more, to, count);
      } else {
        write.Apply<false>(sums, sums, to, count);
      }
    });
  }
};

// A grid of codes: round(clip(x * inverse, low, high)).
struct Grid {
  float inverse = 0, low = 0, high = 0;

  Ints Codes(Floats v) const {
    const Floats least = Floats{} + low, most = Floats{} + high;
    v = v * inverse;
    v = v < least ? least : v;
    v = v > most ? most : v;
    v = (v + 12582912.0f) - 12582912.0f;  // halves to the even one
    return __builtin_convertvector(v, Ints);
  }
};

inline Floats MultiplyAdd(Floats a, Floats b, Floats c) {  // rounded once
#if defined(__AVX512F__)
  return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return (Floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}

inline Floats LoadFloats(const float* p) {
  Floats v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

// A layer whose sums become floats: sum * factor + bias, plus a residual,
// through ReLU, and onto the next layer's grid.
struct FloatLayer : Layer {
  Tensor residual;
  const float *factor, *bias;
  Grid in, out;
  bool adds, relu;

  FloatLayer(const Layer& layer, const Any& residual)
      : Layer(layer), residual(residual) {}

  bool encodes() const { return x.type == ffi::F32; }
  Type Codes() const override {
    if (!encodes()) return x.type;
    return in.low < 0 ? ffi::S8 : ffi::U8;
  }

  const void* Encode(int64_t first, int64_t count,
                     Arena& arena) const override {
    if (!encodes()) return x.at(first);
    const auto* from = static_cast<const float*>(x.data) + first;
    // int8 has the same bits.
    auto* to = static_cast<uint8_t*>(arena.Get(count));
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
      Store(to + i, in.Codes(LoadFloats(from + i)));
    }
    float last[kLanes] = {};
    uint8_t codes[kLanes];
    std::copy(from + i, from + count, last);
    Store(codes, in.Codes(LoadFloats(last)));
    std::copy_n(codes, count - i, to + i);
    return to;
  }

  void Finish(const int32_t* sums, int64_t first, int64_t count,
              int32_t*) const override {
    const auto* more = static_cast<const float*>(residual.data) + first;
    if (y.type == ffi::F32) {
      Scale(sums, more, static_cast<float*>(y.at(first)), count);
    } else {
      Scale(sums, more, static_cast<uint8_t*>(y.at(first)), count);
    }
  }

  template <typename Out>
  void Scale(const int32_t* sums, const float* more, Out* to,
             int64_t count) const {
    const int64_t period = std::lcm<int64_t>(g.k[3], kLanes);
    std::vector<float> numbers(2 * period);
    for (int64_t i = 0; i < period; ++i) {
      numbers[i] = factor[i % g.k[3]];
      numbers[period + i] = bias[i % g.k[3]];
    }
    const auto run = [&](auto plus, auto cut) {
      Periods(period, count, sums, more, adds, to,
              [&](const int32_t* sum, const float* add, Out* y, int64_t n) {
                ScaleBlock<plus.value, cut.value>(sum, add, y, n, numbers);
              });
    };
    const std::true_type yes;
    const std::false_type no;
    if (adds) {
      relu ? run(yes, yes) : run(yes, no);
    } else {
      relu ? run(no, yes) : run(no, no);
    }
  }

  template <bool plus, bool cut, typename Out>
  void ScaleBlock(const int32_t* sums, const float* more, Out* to,
                  int64_t count, const std::vector<float>& numbers) const {
    const int64_t period = numbers.size() / 2;
    const Grid grid = out;
    for (int64_t from = 0; from < count; from += period) {
      for (int64_t v = 0; v < period; v += kLanes) {
        const int64_t i = from + v;
        const Floats mul = LoadFloats(numbers.data() + v);
        const Floats add = LoadFloats(numbers.data() + period + v);
        const Floats sum = __builtin_convertvector(Load(sums + i), Floats);
        Floats z = MultiplyAdd(sum, mul, add);
        if (plus) z += LoadFloats(more + i);
        if (cut) z = z < 0 ? Floats{} : z;
        if constexpr (std::is_same<Out, float>::value) {
          std::memcpy(to + i, &z, sizeof(z));
        } else {
          Store(to + i, grid.Codes(z));
        }
      }
    }
  }
};

ffi::Error Run(const Layer& layer) {
  std::lock_guard<std::mutex> lock(Turn());
  try {
    layer.Run();
  } catch (const std::exception& error) {
    return ffi::Error::Internal(std::string("int8: ") + error.what());
  }
  return ffi::Error::Success();
}

// `how` has the stride, the padding and the groups.
ffi::Error ConvCall(Any x, Any kernel, AnyOut y, Shape how) {
  return Run(Layer(x, kernel, *y, how, true));
}

// `rules` has of reading, writing and the shortcut: channels (0: no such rule),
// shift, low, high. Their multipliers and offsets follow one another.
ffi::Error LayerCall(Any x, Any kernel, Any other, Any table,
                     ffi::Buffer<ffi::S32> multipliers,
                     ffi::Buffer<ffi::S64> offsets, AnyOut y, Shape how,
                     bool looks_up, bool adds, Shape rules) {
  IntegerLayer layer({x, kernel, *y, how, false}, other, table, looks_up, adds);
  int64_t at = 0;
  Rule* const made[] = {&layer.read, &layer.write, &layer.shortcut};
  for (int i = 0; i < 3; ++i) {
    const int64_t* rule = rules.begin() + 4 * i;
    if (rule[0] == 0) continue;
    *made[i] = Rule(multipliers.typed_data() + at, offsets.typed_data() + at,
                    rule[0], rule + 1);
    at += rule[0];
  }
  return Run(layer);
}

// `steps` has those of the input's grid and of the output's, `ends` the least
// and the largest code of each.
ffi::Error FloatCall(Any x, Any kernel, Any residual,
                     ffi::Buffer<ffi::F32> factor, ffi::Buffer<ffi::F32> bias,
                     ffi::Buffer<ffi::F32> steps, AnyOut y, Shape how,
                     bool adds, bool relu, Shape ends) {
  FloatLayer layer({x, kernel, *y, how, false}, residual);
  layer.factor = factor.typed_data(), layer.bias = bias.typed_data();
  layer.adds = adds, layer.relu = relu;
  Grid* const grids[] = {&layer.in, &layer.out};
  for (int i = 0; i < 2; ++i) {
    *grids[i] = {1 / steps.typed_data()[i], static_cast<float>(ends[2 * i]),
                 static_cast<float>(ends[2 * i + 1])};
  }
  return Run(layer);
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    Int8Conv, ConvCall,
    ffi::Ffi::Bind().Arg<Any>().Arg<Any>().Ret<Any>().Attr<Shape>("how"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(Int8Layer, LayerCall,
                              ffi::Ffi::Bind()
                                  .Arg<Any>()
                                  .Arg<Any>()
                                  .Arg<Any>()
                                  .Arg<Any>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::S64>>()
                                  .Ret<Any>()
                                  .Attr<Shape>("how")
                                  .Attr<bool>("looks_up")
                                  .Attr<bool>("adds")
                                  .Attr<Shape>("rules"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(Int8Float, FloatCall,
                              ffi::Ffi::Bind()
                                  .Arg<Any>()
                                  .Arg<Any>()
                                  .Arg<Any>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<Any>()
                                  .Attr<Shape>("how")
                                  .Attr<bool>("adds")
                                  .Attr<bool>("relu")
                                  .Attr<Shape>("ends"));
