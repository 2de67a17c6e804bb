// Memory, copies, streams and the plug-in's entry.
//
// All memory of the device is one file mapped twice: Paddle sees the mapping that nobody may
// read or write, and the copy functions use the other.

#include "fake_device.h"

#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <map>
#include <mutex>
#include <string>

#include "paddle/phi/backends/device_ext.h"

namespace {

constexpr size_t kArena = size_t{12} << 30;     // bytes of address space, taken when used
constexpr size_t kPage = 4096;

char *device_base = nullptr;
char *host_base = nullptr;
size_t memory_limit = kArena;

// A first-fit allocator over offsets into the arena.
std::mutex allocator_mutex;
std::map<size_t, size_t> free_blocks;           // offset -> size
std::map<size_t, size_t> used_blocks;
size_t bytes_in_use = 0;
size_t peak_bytes = 0;

std::atomic<long> copies_to_device{0};
std::atomic<long> copies_to_host{0};
thread_local int current_device = 0;

size_t read_number(const char *name, size_t otherwise) {
  const char *text = std::getenv(name);
  return text ? std::strtoull(text, nullptr, 10) : otherwise;
}

C_Status succeed() { return C_SUCCESS; }

C_Status initialize() {
  if (device_base) return C_SUCCESS;
  int file = memfd_create("fake_device", 0);
  if (file < 0 || ftruncate(file, kArena)) return C_FAILED;
  const int flags = MAP_SHARED | MAP_NORESERVE;
  void *open = mmap(nullptr, kArena, PROT_READ | PROT_WRITE, flags, file, 0);
  void *closed = mmap(nullptr, kArena, PROT_NONE, flags, file, 0);
  close(file);
  if (open == MAP_FAILED || closed == MAP_FAILED) return C_FAILED;
  host_base = static_cast<char *>(open);
  device_base = static_cast<char *>(closed);
  free_blocks[0] = kArena;
  memory_limit = read_number("FAKE_MEGABYTES", kArena >> 20) << 20;
  return C_SUCCESS;
}

C_Status set_device(const C_Device device) {
  current_device = device->id;
  return C_SUCCESS;
}

C_Status get_device(const C_Device device) {
  device->id = current_device;
  return C_SUCCESS;
}

C_Status leave_device(const C_Device) { return C_SUCCESS; }

C_Status count_devices(size_t *count) {
  *count = 2;
  return C_SUCCESS;
}

C_Status list_devices(size_t *devices) {
  devices[0] = 0;
  devices[1] = 1;
  return C_SUCCESS;
}

// Copies.

// FAKE_HANG_BYTES, FAKE_HANG_COUNT: one copy never returns, as a blocking copy behind a
// collective operation that hangs.
void hang_if_asked(size_t size) {
  static const size_t bytes = read_number("FAKE_HANG_BYTES", 0);
  static std::atomic<long> left{static_cast<long>(read_number("FAKE_HANG_COUNT", 1))};
  if (!bytes || size != bytes || --left != 0) return;
  std::fprintf(stderr, "fake device: a copy of %zu bytes hangs\n", size);
  for (;;) sleep(1);
}

C_Status copy_to_device(const C_Device, void *target, const void *source, size_t size) {
  ++copies_to_device;
  hang_if_asked(size);
  std::memcpy(host_view(target), host_view(source), size);
  // FAKE_WRONG_BYTES: what is so large or larger arrives with another first number.
  static const size_t wrong = read_number("FAKE_WRONG_BYTES", SIZE_MAX);
  if (size >= wrong) *static_cast<float *>(host_view(target)) += 1;
  return C_SUCCESS;
}

C_Status copy_to_host(const C_Device, void *target, const void *source, size_t size) {
  ++copies_to_host;
  std::memcpy(host_view(target), host_view(source), size);
  return C_SUCCESS;
}

C_Status copy_on_device(const C_Device, void *target, const void *source, size_t size) {
  std::memmove(host_view(target), host_view(source), size);
  return C_SUCCESS;
}

C_Status copy_between(const C_Device, const C_Device, void *target, const void *source,
                      size_t size) {
  std::memmove(host_view(target), host_view(source), size);
  return C_SUCCESS;
}

C_Status copy_to_device_async(const C_Device device, C_Stream, void *target, const void *source,
                              size_t size) {
  return copy_to_device(device, target, source, size);
}

C_Status copy_to_host_async(const C_Device device, C_Stream, void *target, const void *source,
                            size_t size) {
  return copy_to_host(device, target, source, size);
}

C_Status copy_on_device_async(const C_Device device, C_Stream, void *target, const void *source,
                              size_t size) {
  return copy_on_device(device, target, source, size);
}

C_Status copy_between_async(const C_Device from, const C_Device to, C_Stream, void *target,
                            const void *source, size_t size) {
  return copy_between(from, to, target, source, size);
}

C_Status fill(const C_Device, void *target, unsigned char value, size_t size) {
  std::memset(host_view(target), value, size);
  return C_SUCCESS;
}

// Allocation.

C_Status allocate(const C_Device, void **pointer, size_t size) {
  std::lock_guard<std::mutex> lock(allocator_mutex);
  size = (size + kPage - 1) / kPage * kPage;
  if (!size) size = kPage;
  *pointer = nullptr;               // without an error: Paddle then says what is short
  if (bytes_in_use + size > memory_limit) return C_SUCCESS;
  for (auto block = free_blocks.begin(); block != free_blocks.end(); ++block) {
    const auto [offset, available] = *block;
    if (available < size) continue;
    free_blocks.erase(block);
    if (available > size) free_blocks[offset + size] = available - size;
    used_blocks[offset] = size;
    bytes_in_use += size;
    if (bytes_in_use > peak_bytes) peak_bytes = bytes_in_use;
    *pointer = device_base + offset;
    return C_SUCCESS;
  }
  return C_SUCCESS;
}

C_Status deallocate(const C_Device, void *pointer, size_t) {
  std::lock_guard<std::mutex> lock(allocator_mutex);
  size_t offset = static_cast<char *>(pointer) - device_base;
  const auto used = used_blocks.find(offset);
  if (used == used_blocks.end()) return C_FAILED;
  size_t size = used->second;
  used_blocks.erase(used);
  bytes_in_use -= size;
  auto next = free_blocks.lower_bound(offset);
  if (next != free_blocks.end() && offset + size == next->first) {
    size += next->second;
    next = free_blocks.erase(next);
  }
  if (next != free_blocks.begin()) {
    const auto before = std::prev(next);
    if (before->first + before->second == offset) {
      before->second += size;
      return C_SUCCESS;
    }
  }
  free_blocks[offset] = size;
  return C_SUCCESS;
}

C_Status allocate_on_host(const C_Device, void **pointer, size_t size) {
  *pointer = std::malloc(size);
  return C_SUCCESS;
}

C_Status deallocate_on_host(const C_Device, void *pointer, size_t) {
  std::free(pointer);
  return C_SUCCESS;
}

C_Status describe_memory(const C_Device, size_t *total, size_t *available) {
  *total = memory_limit;
  *available = memory_limit - bytes_in_use;
  return C_SUCCESS;
}

C_Status get_min_chunk(const C_Device, size_t *size) {
  *size = 512;
  return C_SUCCESS;
}

// Streams and events: everything has happened by the time that a call returns.

C_Status create_stream(const C_Device, C_Stream *stream) {
  *stream = static_cast<C_Stream>(std::malloc(8));
  return C_SUCCESS;
}

C_Status destroy_stream(const C_Device, C_Stream stream) {
  std::free(stream);
  return C_SUCCESS;
}

C_Status use_stream(const C_Device, C_Stream) { return C_SUCCESS; }

C_Status add_callback(const C_Device device, C_Stream stream, C_Callback callback, void *data) {
  C_Status status = C_SUCCESS;
  callback(device, stream, data, &status);
  return status;
}

C_Status create_event(const C_Device, C_Event *event) {
  *event = static_cast<C_Event>(std::malloc(8));
  return C_SUCCESS;
}

C_Status destroy_event(const C_Device, C_Event event) {
  std::free(event);
  return C_SUCCESS;
}

C_Status use_event(const C_Device, C_Event) { return C_SUCCESS; }

C_Status record_event(const C_Device, C_Stream, C_Event) { return C_SUCCESS; }

#ifdef FAKE_HALF
C_Status get_zero(const C_Device, size_t *number) {
  *number = 0;
  return C_SUCCESS;
}

C_Status has_float16(const C_Device, bool *is_supported) {
  *is_supported = true;
  return C_SUCCESS;
}

C_Status has_bfloat16(const C_Device, bool *is_supported) {
  *is_supported = !std::getenv("FAKE_NO_BFLOAT16");
  return C_SUCCESS;
}
#else           // Paddle 2.6 does not say of which device it asks
C_Status get_zero(size_t *number) {
  *number = 0;
  return C_SUCCESS;
}
#endif

// Gradients are added up in place by Paddle through this one: y = a x + b y.
C_Status axpby(const C_Device, C_Stream, C_DataType type, size_t count, float a, void *x, float b,
               void *y) {
  x = host_view(x);
  y = host_view(y);
  for (size_t i = 0; i < count; ++i) {
    if (type == FLOAT32) {
      auto *out = static_cast<float *>(y);
      out[i] = a * static_cast<float *>(x)[i] + b * out[i];
    } else if (type == FLOAT64) {
      auto *out = static_cast<double *>(y);
      out[i] = a * static_cast<double *>(x)[i] + b * out[i];
    } else if (type == FLOAT16) {
      auto *out = static_cast<uint16_t *>(y);
      out[i] = float_to_half(a * half_to_float(static_cast<uint16_t *>(x)[i]) +
                             b * half_to_float(out[i]));
    } else if (type == BFLOAT16) {
      auto *out = static_cast<uint16_t *>(y);
      out[i] = float_to_bfloat16(a * bfloat16_to_float(static_cast<uint16_t *>(x)[i]) +
                                 b * bfloat16_to_float(out[i]));
    } else {
      std::fprintf(stderr, "fake device: axpby of type %d\n", type);
      return C_FAILED;
    }
  }
  return C_SUCCESS;
}

}  // namespace

void *host_view(const void *pointer) {
  const char *address = static_cast<const char *>(pointer);
  if (address >= device_base && address < device_base + kArena)
    return host_base + (address - device_base);
  return const_cast<void *>(pointer);
}

float half_to_float(uint16_t bits) {
  const int exponent = (bits >> 10) & 31, mantissa = bits & 1023;
  float value;
  if (exponent == 0) {
    value = std::ldexp(static_cast<float>(mantissa), -24);
  } else if (exponent == 31) {
    value = mantissa ? NAN : INFINITY;
  } else {
    value = std::ldexp(static_cast<float>(mantissa + 1024), exponent - 25);
  }
  return bits >> 15 ? -value : value;
}

uint16_t float_to_half(float value) {
  const _Float16 half = static_cast<_Float16>(value);
  uint16_t bits;
  std::memcpy(&bits, &half, sizeof bits);
  return bits;
}

float bfloat16_to_float(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

uint16_t float_to_bfloat16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fc0;      // NaN
  return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;        // to the nearest, ties to even
}

// For the tests, which call it through ctypes.
extern "C" void fake_device_counts(long *to_device, long *to_host, size_t *peak) {
  *to_device = copies_to_device;
  *to_host = copies_to_host;
  *peak = peak_bytes;
}

extern "C" void InitPlugin(CustomRuntimeParams *params) {
  PADDLE_CUSTOM_RUNTIME_CHECK_VERSION(params);
  const char *type_name = std::getenv("FAKE_TYPE");
  static std::string type = type_name ? type_name : "fake";
  params->device_type = const_cast<char *>(type.c_str());
  params->sub_device_type = const_cast<char *>("fake");
  C_DeviceInterface *interface = params->interface;
  std::memset(static_cast<void *>(interface), 0, sizeof *interface);
  interface->initialize = initialize;
  interface->finalize = succeed;
  interface->init_device = set_device;
  interface->set_device = set_device;
  interface->get_device = get_device;
  interface->deinit_device = leave_device;
  interface->create_stream = create_stream;
  interface->destroy_stream = destroy_stream;
  interface->query_stream = use_stream;
  interface->stream_add_callback = add_callback;
  interface->create_event = create_event;
  interface->destroy_event = destroy_event;
  interface->record_event = record_event;
  interface->query_event = use_event;
  interface->synchronize_device = leave_device;
  interface->synchronize_stream = use_stream;
  interface->synchronize_event = use_event;
  interface->stream_wait_event = record_event;
  interface->memory_copy_h2d = copy_to_device;
  interface->memory_copy_d2h = copy_to_host;
  interface->memory_copy_d2d = copy_on_device;
  interface->memory_copy_p2p = copy_between;
  interface->async_memory_copy_h2d = copy_to_device_async;
  interface->async_memory_copy_d2h = copy_to_host_async;
  interface->async_memory_copy_d2d = copy_on_device_async;
  interface->async_memory_copy_p2p = copy_between_async;
  interface->device_memory_set = fill;
  interface->device_memory_allocate = allocate;
  interface->device_memory_deallocate = deallocate;
  interface->host_memory_allocate = allocate_on_host;
  interface->host_memory_deallocate = deallocate_on_host;
  interface->unified_memory_allocate = allocate_on_host;
  interface->unified_memory_deallocate = deallocate_on_host;
  interface->get_device_count = count_devices;
  interface->get_device_list = list_devices;
  interface->device_memory_stats = describe_memory;
  interface->device_min_chunk_size = get_min_chunk;
  interface->get_compute_capability = get_zero;
  interface->get_runtime_version = get_zero;
  interface->get_driver_version = get_zero;
  interface->blas_axpby = axpby;
  add_collectives(interface);
#ifdef FAKE_HALF
  interface->is_float16_supported = has_float16;
  interface->is_bfloat16_supported = has_bfloat16;
  register_half_kernels(type.c_str());
#endif
}
