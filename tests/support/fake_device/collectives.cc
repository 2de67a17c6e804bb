// Collective operations between the processes of one machine, in shared memory.
//
// A communicator has a barrier and one slot a rank. Tensors larger than a slot go piece by piece.

#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "fake_device.h"
#include "paddle/phi/backends/device_ext.h"

namespace {

constexpr size_t kSlot = size_t{4} << 20;       // bytes
constexpr size_t kHeader = 4096;

struct Header {
  pthread_barrier_t barrier;
  std::atomic<int> is_ready;
};

}  // namespace

struct C_CCLComm_st {
  size_t rank;
  size_t num_ranks;
  Header *header;
  char *slots;
  std::string name;

  void wait() { pthread_barrier_wait(&header->barrier); }
  char *slot(size_t owner) { return slots + owner * kSlot; }
};

namespace {

C_Status get_id_size(size_t *size) {
  *size = 64;
  return C_SUCCESS;
}

C_Status make_id(C_CCLRootId *id) {
  static std::atomic<int> number{0};
  std::snprintf(static_cast<char *>(id->data), id->sz, "/fake-device-%d-%d", getpid(), ++number);
  return C_SUCCESS;
}

C_Status join(size_t num_ranks, C_CCLRootId *id, size_t rank, C_CCLComm *communicator) {
  const std::string name(static_cast<char *>(id->data));
  const size_t bytes = kHeader + num_ranks * kSlot;
  const int file = shm_open(name.c_str(), O_RDWR | O_CREAT, 0600);
  if (file < 0) return C_FAILED;
  if (rank == 0) {
    if (ftruncate(file, bytes)) return C_FAILED;
  } else {
    struct stat status;
    do {
      usleep(1000);
      fstat(file, &status);
    } while (static_cast<size_t>(status.st_size) < bytes);
  }
  void *memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  if (memory == MAP_FAILED) return C_FAILED;
  auto *header = static_cast<Header *>(memory);
  if (rank == 0) {
    pthread_barrierattr_t attributes;
    pthread_barrierattr_init(&attributes);
    pthread_barrierattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
    pthread_barrier_init(&header->barrier, &attributes, num_ranks);
    header->is_ready = 1;
  } else {
    while (!header->is_ready) usleep(1000);
  }
  *communicator =
      new C_CCLComm_st{rank, num_ranks, header, static_cast<char *>(memory) + kHeader, name};
  (*communicator)->wait();
  if (rank == 0) shm_unlink(name.c_str());
  return C_SUCCESS;
}

C_Status leave(C_CCLComm communicator) {
  delete communicator;
  return C_SUCCESS;
}

#ifdef FAKE_HALF
C_Status get_name(C_CCLComm communicator, char *name) {
  std::strcpy(name, communicator->name.c_str());
  return C_SUCCESS;
}
#endif

size_t size_of(C_DataType type) {
  switch (type) {
    case BOOL:
    case UINT8:
    case INT8:
      return 1;
    case UINT16:
    case INT16:
    case FLOAT16:
    case BFLOAT16:
      return 2;
    case INT32:
    case UINT32:
    case FLOAT32:
      return 4;
    default:
      return 8;
  }
}

// Calls visit(first byte, elements, bytes) for each piece that fits into a slot.
void by_pieces(size_t count, size_t width,
               const std::function<void(size_t, size_t, size_t)> &visit) {
  const size_t step = kSlot / width;
  for (size_t first = 0; first < count; first += step) {
    const size_t elements = std::min(step, count - first);
    visit(first * width, elements, elements * width);
  }
}

template <class T>
T reduce(T a, T b, C_CCLReduceOp operation) {
  switch (operation) {
    case MAX:
      return std::max(a, b);
    case MIN:
      return std::min(a, b);
    case PRODUCT:
      return a * b;
    default:
      return a + b;
  }
}

template <class T>
void reduce_all(void *into, const void *from, size_t count, C_CCLReduceOp operation) {
  T *a = static_cast<T *>(into);
  const T *b = static_cast<const T *>(from);
  for (size_t i = 0; i < count; ++i) a[i] = reduce(a[i], b[i], operation);
}

template <float (*widen)(uint16_t), uint16_t (*narrow)(float)>
void reduce_half(void *into, const void *from, size_t count, C_CCLReduceOp operation) {
  uint16_t *a = static_cast<uint16_t *>(into);
  const uint16_t *b = static_cast<const uint16_t *>(from);
  for (size_t i = 0; i < count; ++i) a[i] = narrow(reduce(widen(a[i]), widen(b[i]), operation));
}

bool reduce_into(void *into, const void *from, size_t count, C_DataType type,
                 C_CCLReduceOp operation) {
  switch (type) {
    case FLOAT32:
      reduce_all<float>(into, from, count, operation);
      return true;
    case INT32:
      reduce_all<int32_t>(into, from, count, operation);
      return true;
    case INT64:
      reduce_all<int64_t>(into, from, count, operation);
      return true;
    case BOOL:
    case UINT8:
      reduce_all<uint8_t>(into, from, count, operation);
      return true;
    case FLOAT16:
      reduce_half<half_to_float, float_to_half>(into, from, count, operation);
      return true;
    case BFLOAT16:
      reduce_half<bfloat16_to_float, float_to_bfloat16>(into, from, count, operation);
      return true;
    default:                    // float64 too: not every accelerator has it
      std::fprintf(stderr, "fake device: no reduction of type %d\n", type);
      return false;
  }
}

C_Status all_reduce(void *send, void *receive, size_t count, C_DataType type,
                    C_CCLReduceOp operation, C_CCLComm group, C_Stream) {
  char *source = static_cast<char *>(host_view(send));
  char *target = static_cast<char *>(host_view(receive));
  bool is_known = true;
  by_pieces(count, size_of(type), [&](size_t first, size_t elements, size_t bytes) {
    std::memcpy(group->slot(group->rank), source + first, bytes);
    group->wait();
    std::vector<char> sum(group->slot(0), group->slot(0) + bytes);
    for (size_t rank = 1; rank < group->num_ranks; ++rank)
      is_known &= reduce_into(sum.data(), group->slot(rank), elements, type, operation);
    group->wait();
    std::memcpy(target + first, sum.data(), bytes);
  });
  return is_known ? C_SUCCESS : C_FAILED;
}

C_Status broadcast(void *buffer, size_t count, C_DataType type, size_t root, C_CCLComm group,
                   C_Stream) {
  char *memory = static_cast<char *>(host_view(buffer));
  by_pieces(count, size_of(type), [&](size_t first, size_t, size_t bytes) {
    if (group->rank == root) std::memcpy(group->slot(root), memory + first, bytes);
    group->wait();
    if (group->rank != root) std::memcpy(memory + first, group->slot(root), bytes);
    group->wait();
  });
  return C_SUCCESS;
}

C_Status all_gather(void *send, void *receive, size_t count, C_DataType type, C_CCLComm group,
                    C_Stream) {
  char *source = static_cast<char *>(host_view(send));
  char *target = static_cast<char *>(host_view(receive));
  const size_t total = count * size_of(type);
  by_pieces(count, size_of(type), [&](size_t first, size_t, size_t bytes) {
    std::memcpy(group->slot(group->rank), source + first, bytes);
    group->wait();
    for (size_t rank = 0; rank < group->num_ranks; ++rank)
      std::memcpy(target + rank * total + first, group->slot(rank), bytes);
    group->wait();
  });
  return C_SUCCESS;
}

C_Status ignore() { return C_SUCCESS; }

}  // namespace

void add_collectives(C_DeviceInterface *interface) {
  interface->xccl_get_unique_id_size = get_id_size;
  interface->xccl_get_unique_id = make_id;
  interface->xccl_comm_init_rank = join;
  interface->xccl_destroy_comm = leave;
#ifdef FAKE_HALF
  interface->xccl_get_comm_name = get_name;
#endif
  interface->xccl_all_reduce = all_reduce;
  interface->xccl_broadcast = broadcast;
  interface->xccl_all_gather = all_gather;
  interface->xccl_group_start = ignore;
  interface->xccl_group_end = ignore;
}
