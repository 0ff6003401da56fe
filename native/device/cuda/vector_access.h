// Memory access of the kernels bound by memory: 16 bytes at a time where addresses allow it, one element at a time where they do not.
// Arithmetic is in fp32, whatever the type in memory.
#pragma once
#include <cuda_bf16.h>

#include <cstdint>
#include <string>

#include "native/core/error.h"
#include "native/core/tensor.h"

namespace tinyllama::cuda {

// `width` neighbours in memory, read and written by one instruction.
template <class T, int width>
struct alignas(sizeof(T) * width) Vector {
  T lane[width];
};

template <int width>
struct Floats {
  float lane[width];
};

template <class T>
constexpr int full_width = 16 / static_cast<int>(sizeof(T));

namespace detail {
template <std::size_t bytes>
struct Word;
template <>
struct Word<2> { using type = unsigned short; };
template <>
struct Word<4> { using type = unsigned int; };
template <>
struct Word<8> { using type = uint2; };
template <>
struct Word<16> { using type = uint4; };
template <class V>
using WordOf = typename Word<sizeof(V)>::type;
}  // namespace detail

// For what is read once: the line is the first to leave the caches, so that what is read again (a gain, a table) stays.
template <int width, class T>
__device__ __forceinline__ Vector<T, width> load_once(const T* address) {
  using Word = detail::WordOf<Vector<T, width>>;
  const Word word = __ldcs(reinterpret_cast<const Word*>(address));
  return reinterpret_cast<const Vector<T, width>&>(word);
}

template <int width, class T>
__device__ __forceinline__ Vector<T, width> load(const T* address) {
  using Word = detail::WordOf<Vector<T, width>>;
  const Word word = *reinterpret_cast<const Word*>(address);
  return reinterpret_cast<const Vector<T, width>&>(word);
}

template <class T, int width>
__device__ __forceinline__ void store(T* address, const Vector<T, width>& vector) {
  using Word = detail::WordOf<Vector<T, width>>;
  *reinterpret_cast<Word*>(address) = reinterpret_cast<const Word&>(vector);
}

// For what nothing reads soon.
template <class T, int width>
__device__ __forceinline__ void store_once(T* address, const Vector<T, width>& vector) {
  using Word = detail::WordOf<Vector<T, width>>;
  __stcs(reinterpret_cast<Word*>(address), reinterpret_cast<const Word&>(vector));
}

// fp32 parameters such as gains and tables, in 16-byte pieces where width is a multiple of 4.
template <int width>
__device__ __forceinline__ Floats<width> load_floats(const float* address) {
  Floats<width> result;
  if constexpr (width % 4 == 0) {
#pragma unroll
    for (int i = 0; i < width; i += 4) {
      const float4 part = __ldg(reinterpret_cast<const float4*>(address + i));
      result.lane[i] = part.x;
      result.lane[i + 1] = part.y;
      result.lane[i + 2] = part.z;
      result.lane[i + 3] = part.w;
    }
  } else {
#pragma unroll
    for (int i = 0; i < width; ++i) result.lane[i] = __ldg(address + i);
  }
  return result;
}

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }

template <class T, int width>
__device__ __forceinline__ Floats<width> to_floats(const Vector<T, width>& vector) {
  Floats<width> result;
#pragma unroll
  for (int i = 0; i < width; ++i) result.lane[i] = to_float(vector.lane[i]);
  return result;
}

// Rounds to the nearest, ties to even.
template <class T, int width>
__device__ __forceinline__ Vector<T, width> to_vector(const Floats<width>& values) {
  Vector<T, width> result;
  if constexpr (sizeof(T) == 4) {
#pragma unroll
    for (int i = 0; i < width; ++i) result.lane[i] = values.lane[i];
  } else if constexpr (width % 2 == 0) {
#pragma unroll
    for (int i = 0; i < width; i += 2) {
      const __nv_bfloat162 pair = __float22bfloat162_rn(make_float2(values.lane[i], values.lane[i + 1]));
      result.lane[i] = pair.x;
      result.lane[i + 1] = pair.y;
    }
  } else {
#pragma unroll
    for (int i = 0; i < width; ++i) result.lane[i] = __float2bfloat16_rn(values.lane[i]);
  }
  return result;
}

// 16 bytes as they lie in memory. What waits in registers between two uses waits in four of them: the 2-byte lanes of a Vector would take one each.
__device__ __forceinline__ uint4 load_packed_once(const void* address) { return __ldcs(static_cast<const uint4*>(address)); }

template <class T>
__device__ __forceinline__ Floats<full_width<T>> unpack(const uint4& packed) {
  const unsigned words[4] = {packed.x, packed.y, packed.z, packed.w};
  Floats<full_width<T>> result;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (sizeof(T) == 4) {
      result.lane[i] = __uint_as_float(words[i]);
    } else {  // a bf16 is the upper half of a float
      result.lane[2 * i] = __uint_as_float(words[i] << 16);
      result.lane[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
    }
  }
  return result;
}

// From here on the compiler knows nothing of the value: it unpacks it anew, instead of keeping an earlier use's floats in registers.
__device__ __forceinline__ void forget(uint4& packed) { asm volatile("" : "+r"(packed.x), "+r"(packed.y), "+r"(packed.z), "+r"(packed.w)); }

template <class T>
T* data_of(const Tensor& tensor) {
  return static_cast<T*>(tensor.data);
}

inline bool aligned(const void* address, std::uintptr_t bytes) { return reinterpret_cast<std::uintptr_t>(address) % bytes == 0; }

// Whether each row of the tensor is made of whole 16-byte vectors. An absent tensor hinders nothing.
template <class T>
bool in_vectors(const Tensor& tensor) {
  return tensor.data == nullptr || (aligned(tensor.data, 16) && tensor.columns % full_width<T> == 0 && tensor.stride % full_width<T> == 0);
}

template <class... Tensors>
void require_one_type(const char* operation, const Tensor& first, const Tensors&... others) {
  require(((others.data == nullptr || others.type == first.type) && ...), std::string(operation) + ": tensors of one type are needed");
}

// Calls body with a value of the C++ type that stands for `type`.
template <class Body>
void with_type(DataType type, Body&& body) {
  if (type == DataType::bf16) {
    body(__nv_bfloat16{});
  } else {
    body(float{});
  }
}

inline unsigned blocks_for(std::int64_t work, std::int64_t per_block) { return static_cast<unsigned>((work + per_block - 1) / per_block); }

}  // namespace tinyllama::cuda
