// What the loops of our own share, passes.cc's and int8.cc's.
#pragma once

#include <immintrin.h>

#include <mutex>

#include "xla/ffi/api/ffi.h"

std::mutex& Turn();  // of onednn.cc: calls take turns

namespace {

namespace ffi = xla::ffi;
using Any = ffi::AnyBuffer;
using AnyOut = ffi::Result<ffi::AnyBuffer>;

#ifdef __AVX512F__
constexpr int kLanes = 16;  // of 32 bits
#else
constexpr int kLanes = 8;
#endif

}  // namespace
