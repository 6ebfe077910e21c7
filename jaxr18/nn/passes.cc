// Batch norm with ReLU, and the quantizer of inputs, as XLA custom calls.
//
// Each is one or two passes over memory that XLA makes several of. An array is
// [members, rows, channels], float32 or bfloat16; all arithmetic is float32.
// Rows are joined until a period of them fills whole vectors, so that any number
// of channels runs at full width, and each position in a period has its own
// coefficients and sums. Sums are made by blocks whose size depends on the shape
// alone and added up in their order, so that results do not depend on threads.

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <string>
#include <type_traits>
#include <vector>

#include "common.h"

namespace {

using Floats = ffi::Buffer<ffi::F32>;
using FloatsOut = ffi::ResultBuffer<ffi::F32>;

constexpr int kChunk = 4;  // vectors of a period whose sums stay in registers
constexpr int64_t kBlock = 32768;  // elements, about; in a core's cache

typedef float Vector __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Words __attribute__((vector_size(4 * kLanes)));
typedef uint16_t Halves __attribute__((vector_size(2 * kLanes)));
using Half = uint16_t;  // the bits of a bfloat16

inline Vector Load(const float* p) {
  Vector v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

inline Vector Load(const Half* p) {
  Halves h;
  std::memcpy(&h, p, sizeof(h));
#ifdef __AVX512F__
  return (Vector)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)h), 16);
#else
  return (Vector)(__builtin_convertvector(h, Words) << 16);
#endif
}

inline void Store(float* p, Vector v) { std::memcpy(p, &v, sizeof(v)); }

inline void Store(Half* p, Vector v) {  // to the nearest, halves to the even
#ifdef __AVX512BF16__
  const auto half = _mm512_cvtneps_pbh((__m512)v);
  std::memcpy(p, &half, sizeof(half));
  return;
#endif
  const Words bits = (Words)v;
  const Words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const Words nan = (bits >> 16) | 0x40;
  const Halves h = __builtin_convertvector(v == v ? rounded : nan, Halves);
  std::memcpy(p, &h, sizeof(h));
}

inline Vector All(float value) {
#ifdef __AVX512F__
  return (Vector)_mm512_set1_ps(value);
#else
  return (Vector)_mm256_set1_ps(value);
#endif
}

// A NaN stays one.
inline Vector Relu(Vector v) { return v < 0 ? Vector{} : v; }
inline Vector Clip(Vector v, Vector low, Vector high) {
  v = low > v ? low : v;
  return high < v ? high : v;
}
// To the nearest, halves to the even one, for |v| < 2**22.
inline Vector Round(Vector v) { return (v + 12582912.0f) - 12582912.0f; }

// XLA takes denormals for zero, in its own threads alone; so do all of ours.
class NoDenormals {
 public:
  NoDenormals() { _mm_setcsr(before_ | 0x8040); }
  ~NoDenormals() { _mm_setcsr(before_); }

 private:
  unsigned before_ = _mm_getcsr();
};

// How the elements of one member are cut up.
struct Layout {
  int64_t size, channels;
  int64_t period;   // elements of some whole rows and whole vectors
  int64_t vectors;  // of a period
  int64_t whole;    // periods; what is left over is a block of its own
  int64_t step;     // periods of a block
  int64_t blocks;

  Layout(int64_t rows, int64_t channels)
      : size(rows * channels), channels(channels) {
    period = std::lcm<int64_t>(channels, kLanes);
    while (period < 3 * kLanes) period *= 2;
    vectors = period / kLanes;
    whole = size / period;
    step = std::max<int64_t>(1, kBlock / period);
    blocks = (whole + step - 1) / step + (size % period ? 1 : 0);
  }

  int64_t First(int64_t block) const {  // its first element
    return std::min(block * step, whole) * period;
  }
  int64_t Periods(int64_t block) const {  // 0 for what is left over
    return std::min(step, whole - std::min(block * step, whole));
  }
};

// Calls run(width, first) for the vectors of a period, `width` at a time.
template <typename Run>
inline void Chunks(int64_t vectors, Run run) {
  int64_t v = 0;
  for (; v + kChunk <= vectors; v += kChunk) {
    run(std::integral_constant<int, kChunk>(), v);
  }
  switch (vectors - v) {
    case 3: run(std::integral_constant<int, 3>(), v); break;
    case 2: run(std::integral_constant<int, 2>(), v); break;
    case 1: run(std::integral_constant<int, 1>(), v); break;
  }
}

#define EACH _Pragma("GCC unroll 4") for (int w = 0; w < kWidth; ++w)

// One operand of a block: its data, or a copy of what is left over, filled up
// with zeros to a period.
template <typename T>
class Piece {
 public:
  Piece(const Layout& layout, int64_t block, const T* data)
      : data_(const_cast<T*>(data) + layout.First(block)) {
    if (layout.Periods(block) == 0) {
      left_ = layout.size - layout.First(block);
      copy_.assign(layout.period, T());
      std::copy_n(data_, left_, copy_.begin());
    }
  }
  T* get() { return copy_.empty() ? data_ : copy_.data(); }
  void WriteBack() {
    if (!copy_.empty()) std::copy_n(copy_.begin(), left_, data_);
  }

 private:
  T* data_;
  int64_t left_ = 0;
  std::vector<T> copy_;
};

// Runs first(block), then between() once, then second(block). A thread has the
// same blocks in both, the second time from the last to the first, since the
// last is still in its cache.
template <typename First, typename Between, typename Second>
void TwoPasses(const Layout& layout, First first, Between between,
               Second second) {
  const bool alone = layout.size < 16384;
#pragma omp parallel if (!alone)
  {
    const NoDenormals guard;
    const int64_t threads = omp_get_num_threads(), me = omp_get_thread_num();
    const int64_t from = layout.blocks * me / threads;
    const int64_t to = layout.blocks * (me + 1) / threads;
    for (int64_t i = from; i < to; ++i) first(i);
#pragma omp barrier
#pragma omp single
    between();
    for (int64_t i = to; i-- > from;) second(i);
  }
}

template <typename Run>
void EachBlock(const Layout& layout, Run run) {
  const bool alone = layout.size < 16384;
#pragma omp parallel if (!alone)
  {
    const NoDenormals guard;
#pragma omp for schedule(static)
    for (int64_t i = 0; i < layout.blocks; ++i) run(i);
  }
}

// Two sums by position in a period, of each block.
class Sums {
 public:
  explicit Sums(const Layout& layout)
      : layout_(layout), values_(2 * layout.blocks * layout.period) {}

  float* Of(int64_t block, int which) {
    return values_.data() + (2 * block + which) * layout_.period;
  }

  // By channel.
  std::vector<double> Total(int which) {
    std::vector<double> total(layout_.channels, 0.0);
    for (int64_t block = 0; block < layout_.blocks; ++block) {
      const float* of = Of(block, which);
      for (int64_t i = 0; i < layout_.period; i += layout_.channels) {
        for (int64_t c = 0; c < layout_.channels; ++c) total[c] += of[i + c];
      }
    }
    return total;
  }

 private:
  Layout layout_;
  std::vector<float> values_;
};

// A value of each channel, repeated over a period.
class Coefficients {
 public:
  explicit Coefficients(const Layout& layout)
      : channels_(layout.channels), values_(layout.period) {}
  Coefficients(const Layout& layout, const float* of) : Coefficients(layout) {
    for (int64_t c = 0; c < channels_; ++c) Set(c, of[c]);
  }
  void Set(int64_t channel, float value) {
    for (size_t i = channel; i < values_.size(); i += channels_) {
      values_[i] = value;
    }
  }
  Vector operator[](int64_t vector) const {
    return Load(values_.data() + vector * kLanes);
  }

 private:
  int64_t channels_;
  std::vector<float> values_;
};

// Where the sum of one block, and that of squares, go.
template <typename T>
void SumOf(const Layout& layout, int64_t block, const T* x, Sums* sums) {
  Piece<T> in(layout, block, x);
  const int64_t periods = std::max<int64_t>(1, layout.Periods(block));
  Chunks(layout.vectors, [&](auto width, int64_t v) {
    constexpr int kWidth = width;
    Vector total[kWidth] = {}, squares[kWidth] = {};
    const T* p = in.get() + v * kLanes;
    for (int64_t i = 0; i < periods; ++i, p += layout.period) {
      EACH {
        const Vector value = Load(p + w * kLanes);
        total[w] += value;
        squares[w] += value * value;
      }
    }
    EACH {
      Store(sums->Of(block, 0) + (v + w) * kLanes, total[w]);
      Store(sums->Of(block, 1) + (v + w) * kLanes, squares[w]);
    }
  });
}

void Moments(const Layout& layout, Sums* sums, float* mean, float* var) {
  const auto total = sums->Total(0), squares = sums->Total(1);
  const double n = static_cast<double>(layout.size / layout.channels);
  for (int64_t c = 0; c < layout.channels; ++c) {
    const double m = total[c] / n, v = squares[c] / n - m * m;
    mean[c] = static_cast<float>(m);
    var[c] = static_cast<float>(v < 0 ? 0 : v);
  }
}

// Coefficients of the affine function that batch norm is.
struct Affine {
  Coefficients center, factor, shift;

  Affine(const Layout& layout, const float* bias)
      : center(layout), factor(layout), shift(layout, bias) {}
  Affine(const Layout& layout, const float* scale, const float* bias,
         const float* mean, const float* var, float epsilon)
      : Affine(layout, bias) {
    Set(layout, scale, mean, var, epsilon);
  }
  void Set(const Layout& layout, const float* scale, const float* mean,
           const float* var, float epsilon) {
    for (int64_t c = 0; c < layout.channels; ++c) {
      center.Set(c, mean[c]);
      factor.Set(c, scale[c] / std::sqrt(var[c] + epsilon));
    }
  }
};

template <typename T, bool relu, bool adds>
void Normalize(const Layout& layout, int64_t block, const T* x,
               const T* residual, const Affine& by, T* y) {
  Piece<T> in(layout, block, x), more(layout, block, adds ? residual : x);
  Piece<T> out(layout, block, y);
  const int64_t periods = std::max<int64_t>(1, layout.Periods(block));
  Chunks(layout.vectors, [&](auto width, int64_t v) {
    constexpr int kWidth = width;
    Vector mid[kWidth], mul[kWidth], add[kWidth];
    EACH {
      mid[w] = by.center[v + w], mul[w] = by.factor[v + w];
      add[w] = by.shift[v + w];
    }
    const T* p = in.get() + v * kLanes;
    const T* r = more.get() + v * kLanes;
    T* q = out.get() + v * kLanes;
    for (int64_t i = 0; i < periods; ++i) {
      EACH {
        const int64_t at = i * layout.period + w * kLanes;
        Vector z = (Load(p + at) - mid[w]) * mul[w] + add[w];
        if (adds) z += Load(r + at);
        Store(q + at, relu ? Relu(z) : z);
      }
    }
  });
  out.WriteBack();
}

template <typename T, bool relu, bool adds>
void Forward(const Layout& layout, const T* x, const T* residual,
             const float* scale, const float* bias, float epsilon, T* y,
             float* mean, float* var) {
  Sums sums(layout);
  Affine by(layout, bias);
  TwoPasses(
      layout, [&](int64_t block) { SumOf(layout, block, x, &sums); },
      [&] {
        Moments(layout, &sums, mean, var);
        by.Set(layout, scale, mean, var, epsilon);
      },
      [&](int64_t block) {
        Normalize<T, relu, adds>(layout, block, x, residual, by, y);
      });
}

// The sums of y's gradient, and of it times x less its mean, where ReLU let
// through. `y` is given where a residual was added: it tells where that was.
// `masked`, the residual's gradient, is then written.
template <typename T, bool relu, bool adds>
void SumGradients(const Layout& layout, int64_t block, const T* x, const T* y,
                  const T* dy, const Affine& by, T* masked, Sums* sums) {
  Piece<T> in(layout, block, x), grad(layout, block, dy);
  Piece<T> after(layout, block, adds ? y : x);
  Piece<T> out(layout, block, adds ? masked : const_cast<T*>(dy));
  const int64_t periods = std::max<int64_t>(1, layout.Periods(block));
  Chunks(layout.vectors, [&](auto width, int64_t v) {
    constexpr int kWidth = width;
    Vector mid[kWidth], mul[kWidth], add[kWidth];
    EACH {
      mid[w] = by.center[v + w], mul[w] = by.factor[v + w];
      add[w] = by.shift[v + w];
    }
    Vector total[kWidth] = {}, products[kWidth] = {};
    const T* p = in.get() + v * kLanes;
    const T* d = grad.get() + v * kLanes;
    const T* a = after.get() + v * kLanes;
    T* q = out.get() + v * kLanes;
    for (int64_t i = 0; i < periods; ++i) {
      EACH {
        const int64_t at = i * layout.period + w * kLanes;
        const Vector value = Load(p + at) - mid[w];
        Vector g = Load(d + at);
        if (adds) {
          g = Load(a + at) > 0 ? g : Vector{};
          Store(q + at, g);
        } else if (relu) {
          g = value * mul[w] + add[w] > 0 ? g : Vector{};
        }
        total[w] += g;
        products[w] += g * value;
      }
    }
    EACH {
      Store(sums->Of(block, 0) + (v + w) * kLanes, total[w]);
      Store(sums->Of(block, 1) + (v + w) * kLanes, products[w]);
    }
  });
  if (adds) out.WriteBack();
}

// What of x's gradient goes through the mean and the variance.
struct Through {
  Coefficients offset, slope;

  explicit Through(const Layout& layout) : offset(layout), slope(layout) {}
};

// `dy` is masked already where a residual was added.
template <typename T, bool relu, bool adds>
void InputGradient(const Layout& layout, int64_t block, const T* x,
                   const T* dy, const Affine& by, const Through& less, T* dx) {
  Piece<T> in(layout, block, x), grad(layout, block, dy);
  Piece<T> out(layout, block, dx);
  const int64_t periods = std::max<int64_t>(1, layout.Periods(block));
  Chunks(layout.vectors, [&](auto width, int64_t v) {
    constexpr int kWidth = width;
    Vector mid[kWidth], mul[kWidth], add[kWidth], off[kWidth], slope[kWidth];
    EACH {
      mid[w] = by.center[v + w], mul[w] = by.factor[v + w];
      add[w] = by.shift[v + w];
      off[w] = less.offset[v + w], slope[w] = less.slope[v + w];
    }
    const T* p = in.get() + v * kLanes;
    const T* d = grad.get() + v * kLanes;
    T* q = out.get() + v * kLanes;
    for (int64_t i = 0; i < periods; ++i) {
      EACH {
        const int64_t at = i * layout.period + w * kLanes;
        const Vector value = Load(p + at) - mid[w];
        Vector g = Load(d + at);
        if (relu && !adds) {
          g = value * mul[w] + add[w] > 0 ? g : Vector{};
        }
        Store(q + at, (g - off[w] - value * slope[w]) * mul[w]);
      }
    }
  });
  out.WriteBack();
}

// The gradients of scale and bias, of the sums of `SumGradients`.
void ScaleGradients(const std::vector<double>& total,
                    const std::vector<double>& products, const float* var,
                    float epsilon, float* dscale, float* dbias) {
  for (size_t c = 0; c < total.size(); ++c) {
    const double inverse = 1 / (static_cast<double>(var[c]) + epsilon);
    dscale[c] = static_cast<float>(products[c] * std::sqrt(inverse));
    dbias[c] = static_cast<float>(total[c]);
  }
}

template <typename T, bool relu, bool adds>
void Backward(const Layout& layout, const T* x, const T* y, const T* dy,
              const float* scale, const float* bias, const float* mean,
              const float* var, float epsilon, T* dx, float* dscale,
              float* dbias, T* masked) {
  Sums sums(layout);
  const Affine by(layout, scale, bias, mean, var, epsilon);
  Through less(layout);
  const auto gradients = [&] {
    const auto total = sums.Total(0), products = sums.Total(1);
    ScaleGradients(total, products, var, epsilon, dscale, dbias);
    const double n = static_cast<double>(layout.size / layout.channels);
    for (int64_t c = 0; c < layout.channels; ++c) {
      const double inverse = 1 / (static_cast<double>(var[c]) + epsilon);
      less.offset.Set(c, static_cast<float>(total[c] / n));
      less.slope.Set(c, static_cast<float>(products[c] * inverse / n));
    }
  };
  TwoPasses(
      layout,
      [&](int64_t block) {
        SumGradients<T, relu, adds>(layout, block, x, y, dy, by, masked, &sums);
      },
      gradients,
      [&](int64_t block) {
        InputGradient<T, relu, adds>(layout, block, x, adds ? masked : dy, by,
                                     less, dx);
      });
}

// Calls run(T()) with the type of a buffer's elements.
template <typename Run>
ffi::Error ByType(const Any& buffer, Run run) {
  std::lock_guard<std::mutex> lock(Turn());
  try {
    if (buffer.element_type() == ffi::BF16) {
      run(Half());
    } else {
      run(float());
    }
  } catch (const std::exception& error) {
    return ffi::Error::Internal(std::string("passes: ") + error.what());
  }
  return ffi::Error::Success();
}

template <typename T>
T* Data(const Any& buffer) {
  return static_cast<T*>(buffer.untyped_data());
}

// Calls run(T(), layout, member) for each member of [members, rows, channels].
template <typename Run>
ffi::Error EachMember(const Any& x, Run run) {
  const auto shape = x.dimensions();
  const Layout layout(shape[1], shape[2]);
  return ByType(x, [&](auto type) {
    for (int64_t i = 0; i < shape[0]; ++i) run(type, layout, i);
  });
}

// A member's elements.
template <typename T>
T* Of(const Any& buffer, const Layout& layout, int64_t member) {
  return Data<T>(buffer) + member * layout.size;
}

// What a member has by channel.
template <typename Buffer>
auto* By(Buffer&& buffer, const Layout& layout, int64_t member) {
  return buffer.typed_data() + member * layout.channels;
}

template <bool relu, bool adds>
ffi::Error BatchNormOf(Any x, const Any& residual, Floats scale, Floats bias,
                       AnyOut y, FloatsOut mean, FloatsOut var, float epsilon) {
  return EachMember(x, [&](auto type, const Layout& layout, int64_t i) {
    using T = decltype(type);
    Forward<T, relu, adds>(layout, Of<T>(x, layout, i),
                           Of<T>(residual, layout, i), By(scale, layout, i),
                           By(bias, layout, i), epsilon, Of<T>(*y, layout, i),
                           By(*mean, layout, i), By(*var, layout, i));
  });
}

ffi::Error BatchNormCall(Any x, Floats scale, Floats bias, AnyOut y,
                         FloatsOut mean, FloatsOut var, bool relu,
                         float epsilon) {
  return (relu ? BatchNormOf<true, false> : BatchNormOf<false, false>)(
      x, x, scale, bias, y, mean, var, epsilon);
}

ffi::Error BatchNormAddCall(Any x, Floats scale, Floats bias, Any residual,
                            AnyOut y, FloatsOut mean, FloatsOut var, bool relu,
                            float epsilon) {
  return (relu ? BatchNormOf<true, true> : BatchNormOf<false, true>)(
      x, residual, scale, bias, y, mean, var, epsilon);
}

template <bool relu, bool adds>
ffi::Error BatchNormGradOf(Any x, const Any& y, Any dy, Floats scale,
                           Floats bias, Floats mean, Floats var, AnyOut dx,
                           FloatsOut dscale, FloatsOut dbias,
                           const Any& masked, float epsilon) {
  return EachMember(x, [&](auto type, const Layout& layout, int64_t i) {
    using T = decltype(type);
    Backward<T, relu, adds>(
        layout, Of<T>(x, layout, i), Of<T>(y, layout, i), Of<T>(dy, layout, i),
        By(scale, layout, i), By(bias, layout, i), By(mean, layout, i),
        By(var, layout, i), epsilon, Of<T>(*dx, layout, i),
        By(*dscale, layout, i), By(*dbias, layout, i),
        Of<T>(masked, layout, i));
  });
}

ffi::Error BatchNormGradCall(Any x, Any dy, Floats scale, Floats bias,
                             Floats mean, Floats var, AnyOut dx,
                             FloatsOut dscale, FloatsOut dbias, bool relu,
                             float epsilon) {
  return (relu ? BatchNormGradOf<true, false> : BatchNormGradOf<false, false>)(
      x, x, dy, scale, bias, mean, var, dx, dscale, dbias, *dx, epsilon);
}

// With ReLU; without it the residual's gradient is dy.
ffi::Error BatchNormAddGradCall(Any x, Any dy, Floats scale, Floats bias,
                                Floats mean, Floats var, Any y, AnyOut dx,
                                FloatsOut dscale, FloatsOut dbias,
                                AnyOut dresidual, float epsilon) {
  return BatchNormGradOf<true, true>(x, y, dy, scale, bias, mean, var, dx,
                                     dscale, dbias, *dresidual, epsilon);
}

// The same in parts, between which devices that share a batch meet.

ffi::Error MomentsCall(Any x, FloatsOut mean, FloatsOut var) {
  return EachMember(x, [&](auto type, const Layout& layout, int64_t i) {
    Sums sums(layout);
    EachBlock(layout, [&](int64_t block) {
      SumOf(layout, block, Of<decltype(type)>(x, layout, i), &sums);
    });
    Moments(layout, &sums, By(*mean, layout, i), By(*var, layout, i));
  });
}

template <bool relu, bool adds>
ffi::Error ApplyOf(Any x, Floats scale, Floats bias, Floats mean, Floats var,
                   const Any& residual, AnyOut y, float epsilon) {
  return EachMember(x, [&](auto type, const Layout& layout, int64_t i) {
    using T = decltype(type);
    const Affine by(layout, By(scale, layout, i), By(bias, layout, i),
                    By(mean, layout, i), By(var, layout, i), epsilon);
    EachBlock(layout, [&](int64_t block) {
      Normalize<T, relu, adds>(layout, block, Of<T>(x, layout, i),
                               Of<T>(residual, layout, i), by,
                               Of<T>(*y, layout, i));
    });
  });
}

ffi::Error ApplyCall(Any x, Floats scale, Floats bias, Floats mean, Floats var,
                     AnyOut y, bool relu, float epsilon) {
  return (relu ? ApplyOf<true, false> : ApplyOf<false, false>)(
      x, scale, bias, mean, var, x, y, epsilon);
}

ffi::Error ApplyAddCall(Any x, Floats scale, Floats bias, Floats mean,
                        Floats var, Any residual, AnyOut y, bool relu,
                        float epsilon) {
  return (relu ? ApplyOf<true, true> : ApplyOf<false, true>)(
      x, scale, bias, mean, var, residual, y, epsilon);
}

template <bool relu, bool adds>
ffi::Error GradientSumsOf(Any x, Any dy, Floats scale, Floats bias, Floats mean,
                          Floats var, const Any& y, FloatsOut dscale,
                          FloatsOut dbias, const Any& masked, float epsilon) {
  return EachMember(x, [&](auto type, const Layout& layout, int64_t i) {
    using T = decltype(type);
    Sums sums(layout);
    const Affine by(layout, By(scale, layout, i), By(bias, layout, i),
                    By(mean, layout, i), By(var, layout, i), epsilon);
    EachBlock(layout, [&](int64_t block) {
      SumGradients<T, relu, adds>(layout, block, Of<T>(x, layout, i),
                                  Of<T>(y, layout, i), Of<T>(dy, layout, i), by,
                                  Of<T>(masked, layout, i), &sums);
    });
    ScaleGradients(sums.Total(0), sums.Total(1), By(var, layout, i), epsilon,
                   By(*dscale, layout, i), By(*dbias, layout, i));
  });
}

ffi::Error GradientSumsCall(Any x, Any dy, Floats scale, Floats bias,
                            Floats mean, Floats var, FloatsOut dscale,
                            FloatsOut dbias, bool relu, float epsilon) {
  return (relu ? GradientSumsOf<true, false> : GradientSumsOf<false, false>)(
      x, dy, scale, bias, mean, var, x, dscale, dbias, x, epsilon);
}

ffi::Error GradientSumsAddCall(Any x, Any dy, Floats scale, Floats bias,
                               Floats mean, Floats var, Any y,
                               FloatsOut dscale, FloatsOut dbias,
                               AnyOut dresidual, float epsilon) {
  return GradientSumsOf<true, true>(x, dy, scale, bias, mean, var, y, dscale,
                                    dbias, *dresidual, epsilon);
}

template <bool relu>
ffi::Error InputGradientOf(Any x, Any dy, Floats scale, Floats bias,
                           Floats mean, Floats var, Floats dscale,
                           Floats dbias, AnyOut dx, float epsilon) {
  const double n = static_cast<double>(x.dimensions()[1]);
  return EachMember(x, [&](auto type, const Layout& layout, int64_t i) {
    using T = decltype(type);
    const Affine by(layout, By(scale, layout, i), By(bias, layout, i),
                    By(mean, layout, i), By(var, layout, i), epsilon);
    Through less(layout);
    for (int64_t c = 0; c < layout.channels; ++c) {
      const double variance = By(var, layout, i)[c];
      const double of_scale = By(dscale, layout, i)[c];
      const double slope = of_scale * std::sqrt(1 / (variance + epsilon)) / n;
      less.offset.Set(c, static_cast<float>(By(dbias, layout, i)[c] / n));
      less.slope.Set(c, static_cast<float>(slope));
    }
    EachBlock(layout, [&](int64_t block) {
      InputGradient<T, relu, false>(layout, block, Of<T>(x, layout, i),
                                    Of<T>(dy, layout, i), by, less,
                                    Of<T>(*dx, layout, i));
    });
  });
}

ffi::Error InputGradientCall(Any x, Any dy, Floats scale, Floats bias,
                             Floats mean, Floats var, Floats dscale,
                             Floats dbias, AnyOut dx, bool relu,
                             float epsilon) {
  return (relu ? InputGradientOf<true> : InputGradientOf<false>)(
      x, dy, scale, bias, mean, var, dscale, dbias, dx, epsilon);
}

// Elementwise: [members, elements].

ffi::Error AddCall(Any a, Any b, AnyOut sum) {
  const auto shape = a.dimensions();
  const Layout layout(shape[0] * shape[1], 1);
  return ByType(a, [&](auto type) {
    using T = decltype(type);
    EachBlock(layout, [&](int64_t block) {
      Piece<T> one(layout, block, Data<T>(a)), two(layout, block, Data<T>(b));
      Piece<T> out(layout, block, Data<T>(*sum));
      const int64_t n =
          std::max<int64_t>(1, layout.Periods(block)) * layout.period;
      const T* p = one.get();
      const T* r = two.get();
      T* q = out.get();
      for (int64_t j = 0; j < n; j += kLanes) {
        Store(q + j, Load(p + j) + Load(r + j));
      }
      out.WriteBack();
    });
  });
}

ffi::Error QuantizeCall(Any x, Floats step, AnyOut y, float low, float high) {
  const auto shape = x.dimensions();
  const Layout layout(shape[1], 1);
  return ByType(x, [&](auto type) {
    using T = decltype(type);
    for (int64_t i = 0; i < shape[0]; ++i) {
      const float of = step.typed_data()[i];
      EachBlock(layout, [&](int64_t block) {
        const Vector inverse = All(1 / of);
        Piece<T> in(layout, block, Data<T>(x) + i * layout.size);
        Piece<T> out(layout, block, Data<T>(*y) + i * layout.size);
        const int64_t n =
            std::max<int64_t>(1, layout.Periods(block)) * layout.period;
        const T* p = in.get();
        T* q = out.get();
        const Vector unit = All(of), least = All(low), most = All(high);
        for (int64_t j = 0; j < n; j += 2 * kLanes) {
          for (int w = 0; w < 2; ++w) {
            const int64_t at = j + w * kLanes;
            const Vector v = Clip(Load(p + at) * inverse, least, most);
            Store(q + at, Round(v) * unit);
          }
        }
        out.WriteBack();
      });
    }
  });
}

// The gradient of x is that of y inside the levels and 0 elsewhere; `total` is
// the sum of y's gradient times the step's: beyond the levels these, inside the
// rounding error if `rounding`, otherwise 0.
ffi::Error QuantizeGradCall(Any x, Any dy, Floats step, AnyOut dx,
                            FloatsOut total, float low, float high,
                            bool rounding) {
  const auto shape = x.dimensions();
  const Layout layout(shape[1], 1);
  const float share = rounding ? 1 : 0;
  return ByType(x, [&](auto type) {
    using T = decltype(type);
    std::vector<Vector> sums(layout.blocks);
    for (int64_t i = 0; i < shape[0]; ++i) {
      const float of = step.typed_data()[i];
      EachBlock(layout, [&](int64_t block) {
        const Vector inverse = All(1 / of);
        Piece<T> in(layout, block, Data<T>(x) + i * layout.size);
        Piece<T> grad(layout, block, Data<T>(dy) + i * layout.size);
        Piece<T> out(layout, block, Data<T>(*dx) + i * layout.size);
        const int64_t n =
            std::max<int64_t>(1, layout.Periods(block)) * layout.period;
        const T* p = in.get();
        const T* d = grad.get();
        T* q = out.get();
        const Vector most = All(high), least = All(low), kept = All(share);
        Vector sum[2] = {};
        for (int64_t j = 0; j < n; j += 2 * kLanes) {
          for (int w = 0; w < 2; ++w) {
            const int64_t at = j + w * kLanes;
            const Vector v = Load(p + at) * inverse;
            const Vector g = Load(d + at);
            const Vector beyond = v >= most ? most : least;
            const auto inside = (v > least) & (v < most);
            sum[w] += g * (inside ? (Round(v) - v) * kept : beyond);
            Store(q + at, inside ? g : Vector{});
          }
        }
        sums[block] = sum[0] + sum[1];
        out.WriteBack();
      });
      double all = 0;
      for (const Vector& sum : sums) {
        for (int lane = 0; lane < kLanes; ++lane) all += sum[lane];
      }
      total->typed_data()[i] = static_cast<float>(all);
    }
  });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(BatchNorm, BatchNormCall,
                              ffi::Ffi::Bind()
                                  .Arg<Any>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Ret<Any>()
                                  .Ret<Floats>()
                                  .Ret<Floats>()
                                  .Attr<bool>("relu")
                                  .Attr<float>("epsilon"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(BatchNormAdd, BatchNormAddCall,
                              ffi::Ffi::Bind()
                                  .Arg<Any>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Any>()
                                  .Ret<Any>()
                                  .Ret<Floats>()
                                  .Ret<Floats>()
                                  .Attr<bool>("relu")
                                  .Attr<float>("epsilon"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(BatchNormGrad, BatchNormGradCall,
                              ffi::Ffi::Bind()
                                  .Arg<Any>()
                                  .Arg<Any>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Ret<Any>()
                                  .Ret<Floats>()
                                  .Ret<Floats>()
                                  .Attr<bool>("relu")
                                  .Attr<float>("epsilon"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(BatchNormAddGrad, BatchNormAddGradCall,
                              ffi::Ffi::Bind()
                                  .Arg<Any>()
                                  .Arg<Any>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Any>()
                                  .Ret<Any>()
                                  .Ret<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Any>()
                                  .Attr<float>("epsilon"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(BatchNormMoments, MomentsCall,
                              ffi::Ffi::Bind()
                                  .Arg<Any>()
                                  .Ret<Floats>()
                                  .Ret<Floats>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(BatchNormApply, ApplyCall,
                              ffi::Ffi::Bind()
                                  .Arg<Any>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Ret<Any>()
                                  .Attr<bool>("relu")
                                  .Attr<float>("epsilon"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(BatchNormApplyAdd, ApplyAddCall,
                              ffi::Ffi::Bind()
                                  .Arg<Any>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Any>()
                                  .Ret<Any>()
                                  .Attr<bool>("relu")
                                  .Attr<float>("epsilon"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(BatchNormSums, GradientSumsCall,
                              ffi::Ffi::Bind()
                                  .Arg<Any>()
                                  .Arg<Any>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Floats>()
                                  .Attr<bool>("relu")
                                  .Attr<float>("epsilon"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(BatchNormSumsAdd, GradientSumsAddCall,
                              ffi::Ffi::Bind()
                                  .Arg<Any>()
                                  .Arg<Any>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Any>()
                                  .Ret<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Any>()
                                  .Attr<float>("epsilon"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(BatchNormInput, InputGradientCall,
                              ffi::Ffi::Bind()
                                  .Arg<Any>()
                                  .Arg<Any>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Ret<Any>()
                                  .Attr<bool>("relu")
                                  .Attr<float>("epsilon"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    AddGradients, AddCall,
    ffi::Ffi::Bind().Arg<Any>().Arg<Any>().Ret<Any>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(Quantize, QuantizeCall,
                              ffi::Ffi::Bind()
                                  .Arg<Any>()
                                  .Arg<Floats>()
                                  .Ret<Any>()
                                  .Attr<float>("low")
                                  .Attr<float>("high"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(QuantizeGrad, QuantizeGradCall,
                              ffi::Ffi::Bind()
                                  .Arg<Any>()
                                  .Arg<Any>()
                                  .Arg<Floats>()
                                  .Ret<Any>()
                                  .Ret<Floats>()
                                  .Attr<float>("low")
                                  .Attr<float>("high")
                                  .Attr<bool>("rounding"));
