// Kernels in half precision, which Paddle's CPU build lacks: its float32 kernel between casts.
//
// Only for Paddle 3. Every kernel that training a Vision Transformer under AMP needs is listed at
// the end; others fall back to the CPU's, which refuse half precision.

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <tuple>
#include <vector>

#include "fake_device.h"
#include "paddle/phi/backends/all_context.h"
#include "paddle/phi/backends/context_pool.h"
#include "paddle/phi/backends/cpu/cpu_context.h"
#include "paddle/phi/backends/custom/custom_context.h"
#include "paddle/phi/core/dense_tensor.h"
#include "paddle/phi/core/kernel_factory.h"
#include "paddle/phi/core/kernel_registry.h"
#include "paddle/phi/core/kernel_utils.h"
#include "paddle/phi/kernels/activation_kernel.h"
#include "paddle/phi/kernels/adamw_kernel.h"
#include "paddle/phi/kernels/add_n_kernel.h"
#include "paddle/phi/kernels/amp_kernel.h"
#include "paddle/phi/kernels/clip_kernel.h"
#include "paddle/phi/kernels/concat_grad_kernel.h"
#include "paddle/phi/kernels/conv_grad_kernel.h"
#include "paddle/phi/kernels/conv_kernel.h"
#include "paddle/phi/kernels/dropout_grad_kernel.h"
#include "paddle/phi/kernels/dropout_kernel.h"
#include "paddle/phi/kernels/elementwise_add_grad_kernel.h"
#include "paddle/phi/kernels/elementwise_add_kernel.h"
#include "paddle/phi/kernels/elementwise_divide_kernel.h"
#include "paddle/phi/kernels/elementwise_multiply_grad_kernel.h"
#include "paddle/phi/kernels/elementwise_multiply_kernel.h"
#include "paddle/phi/kernels/elementwise_subtract_kernel.h"
#include "paddle/phi/kernels/expand_grad_kernel.h"
#include "paddle/phi/kernels/full_kernel.h"
#include "paddle/phi/kernels/gelu_grad_kernel.h"
#include "paddle/phi/kernels/gelu_kernel.h"
#include "paddle/phi/kernels/layer_norm_grad_kernel.h"
#include "paddle/phi/kernels/layer_norm_kernel.h"
#include "paddle/phi/kernels/lerp_kernel.h"
#include "paddle/phi/kernels/matmul_grad_kernel.h"
#include "paddle/phi/kernels/matmul_kernel.h"
#include "paddle/phi/kernels/reduce_mean_kernel.h"
#include "paddle/phi/kernels/reduce_sum_grad_kernel.h"
#include "paddle/phi/kernels/reduce_sum_kernel.h"
#include "paddle/phi/kernels/scale_kernel.h"
#include "paddle/phi/kernels/slice_grad_kernel.h"
#include "paddle/phi/kernels/softmax_grad_kernel.h"
#include "paddle/phi/kernels/softmax_kernel.h"
#include "paddle/phi/kernels/squared_l2_norm_kernel.h"
#include "paddle/phi/kernels/transpose_kernel.h"
#include "paddle/phi/kernels/unfold_grad_kernel.h"
#include "paddle/phi/kernels/unfold_kernel.h"

namespace {

using phi::CPUContext;
using phi::DataType;
using phi::DenseTensor;
using phi::DeviceContext;
using phi::KernelKey;

CPUContext *cpu() {
  return static_cast<CPUContext *>(phi::DeviceContextPool::Instance().Get(phi::CPUPlace()));
}

bool is_half(DataType type) { return type == DataType::FLOAT16 || type == DataType::BFLOAT16; }

DataType widen(DataType type) { return is_half(type) ? DataType::FLOAT32 : type; }

// Copies a tensor of the device to the host; half precision becomes float32.
void copy_to_cpu(const DenseTensor &source, DenseTensor *target) {
  target->Resize(source.dims());
  if (!source.has_allocation()) return;
  const int64_t count = source.numel();
  const DataType type = source.dtype();
  void *memory = cpu()->Alloc(target, widen(type));
  if (source.Holder()->size() < count * phi::SizeOf(type)) {      // declared but not filled
    std::memset(memory, 0, count * phi::SizeOf(widen(type)));
    return;
  }
  const void *values = host_view(source.data());
  if (!is_half(type)) {
    std::memcpy(memory, values, count * phi::SizeOf(type));
    return;
  }
  const auto convert = type == DataType::FLOAT16 ? half_to_float : bfloat16_to_float;
  for (int64_t i = 0; i < count; ++i)
    static_cast<float *>(memory)[i] = convert(static_cast<const uint16_t *>(values)[i]);
}

// Copies a result back to the device; float32 becomes the half precision that is wanted.
void copy_to_device(const DeviceContext &device, const DenseTensor &source, DataType wanted,
                    DenseTensor *target) {
  if (!source.has_allocation()) return;
  target->Resize(source.dims());
  const bool narrows = source.dtype() == DataType::FLOAT32 && is_half(wanted);
  const DataType type = narrows ? wanted : source.dtype();
  void *memory = host_view(device.Alloc(target, type));
  if (!narrows) {
    std::memcpy(memory, source.data(), source.numel() * phi::SizeOf(type));
    return;
  }
  const auto convert = wanted == DataType::FLOAT16 ? float_to_half : float_to_bfloat16;
  for (int64_t i = 0; i < source.numel(); ++i)
    static_cast<uint16_t *>(memory)[i] = convert(source.data<float>()[i]);
}

// An argument of a kernel on its way to the CPU kernel and back. Attributes pass through.
template <class A>
struct Argument {
  A value;
  explicit Argument(A given) : value(given) {}
  A get() { return value; }
  void finish(const DeviceContext &) {}
};

template <>
struct Argument<const DenseTensor &> {
  DenseTensor tensor;
  explicit Argument(const DenseTensor &given) { copy_to_cpu(given, &tensor); }
  const DenseTensor &get() { return tensor; }
  void finish(const DeviceContext &) {}
};

template <>
struct Argument<const paddle::optional<DenseTensor> &> {
  paddle::optional<DenseTensor> tensor;
  explicit Argument(const paddle::optional<DenseTensor> &given) {
    if (!given) return;
    DenseTensor copy;
    copy_to_cpu(*given, &copy);
    tensor = copy;
  }
  const paddle::optional<DenseTensor> &get() { return tensor; }
  void finish(const DeviceContext &) {}
};

template <class T>
struct Tensors {
  std::vector<DenseTensor> tensors;
  std::vector<const T *> pointers;
  explicit Tensors(const std::vector<const T *> &given) : tensors(given.size()) {
    for (size_t i = 0; i < given.size(); ++i) {
      copy_to_cpu(*static_cast<const DenseTensor *>(given[i]), &tensors[i]);
      pointers.push_back(&tensors[i]);
    }
  }
  const std::vector<const T *> &get() { return pointers; }
  void finish(const DeviceContext &) {}
};

template <>
struct Argument<const std::vector<const DenseTensor *> &> : Tensors<DenseTensor> {
  using Tensors::Tensors;
};

template <>
struct Argument<const std::vector<const phi::TensorBase *> &> : Tensors<phi::TensorBase> {
  using Tensors::Tensors;
};

template <>
struct Argument<DenseTensor *> {
  DenseTensor tensor;
  DenseTensor *output;
  DataType wanted = DataType::UNDEFINED;
  explicit Argument(DenseTensor *given) : output(given) {
    if (!output) return;
    wanted = output->dtype();
    tensor.Resize(output->dims());
  }
  DenseTensor *get() { return output ? &tensor : nullptr; }
  void finish(const DeviceContext &device) {
    if (output) copy_to_device(device, tensor, wanted, output);
  }
};

template <>
struct Argument<std::vector<DenseTensor *>> {
  std::vector<Argument<DenseTensor *>> outputs;
  explicit Argument(const std::vector<DenseTensor *> &given) {
    for (DenseTensor *output : given) outputs.emplace_back(output);
  }
  std::vector<DenseTensor *> get() {
    std::vector<DenseTensor *> pointers;
    for (auto &output : outputs) pointers.push_back(output.get());
    return pointers;
  }
  void finish(const DeviceContext &device) {
    for (auto &output : outputs) output.finish(device);
  }
};

template <class... Args>
void call_cpu_kernel(const char *name, Args... args) {
  const auto &kernel = phi::KernelFactory::Instance().SelectKernel(
      name, KernelKey(phi::Backend::CPU, phi::DataLayout::ALL_LAYOUT, DataType::FLOAT32));
  kernel.template GetVariadicKernelFn<void (*)(const DeviceContext &, Args...)>()(*cpu(), args...);
}

// The kernel of a name: N tells apart kernels of one signature.
template <int N, class Function>
struct HalfKernel;

template <int N, class Context, class... Args>
struct HalfKernel<N, void (*)(const Context &, Args...)> {
  static const char *name;
  static void run(const DeviceContext &device, Args... args) {
    std::tuple<Argument<Args>...> arguments{Argument<Args>(args)...};
    std::apply(
        [&](auto &...each) {
          call_cpu_kernel<Args...>(name, each.get()...);
          (each.finish(device), ...);
        },
        arguments);
  }
  // For the one operator that Paddle still calls the old way.
  static void run_legacy(const phi::CustomContext &device, Args... args) { run(device, args...); }
};

template <int N, class Context, class... Args>
const char *HalfKernel<N, void (*)(const Context &, Args...)>::name = nullptr;

// AdamW of a half-precision parameter: the float32 master weight takes the step, and the
// parameter is its rounded copy.
template <class Function>
struct AdamwKernel;

template <class Context, class... Args>
struct AdamwKernel<void (*)(const Context &, Args...)> {
  static constexpr size_t kMasterIn = 8;
  static constexpr size_t kMasterOut = sizeof...(Args) - 1;
  static constexpr size_t kParameterOut = sizeof...(Args) - 7;
  static void run(const DeviceContext &device, Args... args) {
    std::tuple<Argument<Args>...> arguments{Argument<Args>(args)...};
    auto &master_in = std::get<kMasterIn>(arguments).tensor;
    if (master_in) std::get<0>(arguments).tensor = *master_in;
    auto &parameter_out = std::get<kParameterOut>(arguments);
    auto &master_out = std::get<kMasterOut>(arguments);
    std::apply(
        [&](auto &...each) {
          call_cpu_kernel<Args...>("adamw", each.get()...);
          if (master_out.output && parameter_out.output) {
            master_out.tensor = parameter_out.tensor;
            master_out.wanted = DataType::FLOAT32;
          }
          (each.finish(device), ...);
        },
        arguments);
  }
};

const char *device_type = nullptr;

void refuse(phi::KernelContext *) {
  std::fprintf(stderr, "fake device: a kernel was called the old way\n");
  std::abort();
}

void add_kernel(const char *name, void *function, DataType type,
                phi::KernelFn legacy_function = refuse) {
  auto &table = phi::KernelFactory::Instance().kernels()[name];
  const auto cpu_kernel =
      table.find(KernelKey(phi::Backend::CPU, phi::DataLayout::ALL_LAYOUT, DataType::FLOAT32));
  if (cpu_kernel == table.end()) {
    std::fprintf(stderr, "fake device: Paddle has no CPU kernel %s\n", name);
    return;
  }
  const auto backend = paddle::experimental::StringToBackend(device_type);
  phi::Kernel kernel(legacy_function, function);
  *kernel.mutable_args_def() = cpu_kernel->second.args_def();
  const auto adapt = [&](auto &definitions) {
    for (auto &definition : definitions) {
      if (definition.backend == phi::Backend::CPU) definition.SetBackend(backend);
      if (definition.dtype == DataType::FLOAT32) definition.SetDataType(type);
    }
  };
  adapt(kernel.mutable_args_def()->input_defs());
  adapt(kernel.mutable_args_def()->output_defs());
  table[KernelKey(backend, phi::DataLayout::ALL_LAYOUT, type)] = kernel;
}

template <class Kernel>
void add_half_kernel(const char *name, phi::KernelFn legacy_function = refuse) {
  Kernel::name = name;
  for (DataType type : {DataType::FLOAT16, DataType::BFLOAT16})
    add_kernel(name, reinterpret_cast<void *>(&Kernel::run), type, legacy_function);
}

}  // namespace

#define KERNEL_OF(NUMBER, FUNCTION) \
  HalfKernel<NUMBER, decltype(&phi::FUNCTION<float, CPUContext>)>
#define ADD(NAME, FUNCTION) add_half_kernel<KERNEL_OF(__COUNTER__, FUNCTION)>(NAME);

void register_half_kernels(const char *type) {
  device_type = type;
  ADD("matmul", MatmulKernel)
  ADD("matmul_grad", MatmulGradKernel)
  ADD("conv2d", ConvKernel)
  ADD("conv2d_grad", ConvGradKernel)
  ADD("softmax", SoftmaxKernel)
  ADD("softmax_grad", SoftmaxGradKernel)
  ADD("gelu", GeluKernel)
  ADD("gelu_grad", GeluGradKernel)
  ADD("layer_norm", LayerNormKernel)
  ADD("layer_norm_grad", LayerNormGradKernel)
  ADD("add", AddKernel)
  ADD("add_grad", AddGradKernel)
  ADD("multiply", MultiplyKernel)
  ADD("multiply_grad", MultiplyGradKernel)
  ADD("divide", DivideKernel)
  ADD("subtract", SubtractKernel)
  ADD("scale", ScaleKernel)
  ADD("sum", SumKernel)
  ADD("sum_grad", ReduceSumGradKernel)
  ADD("mean", MeanKernel)
  ADD("squared_l2_norm", SquaredL2NormKernel)
  ADD("add_n", AddNKernel)
  ADD("dropout", DropoutRawKernel)
  ADD("dropout_grad", DropoutGradRawKernel)
  ADD("clip", ClipKernel)
  ADD("unfold", UnfoldKernel)
  ADD("unfold_grad", UnfoldGradKernel)
  ADD("lerp", LerpKernel)
  ADD("sqrt", SqrtKernel)
  ADD("transpose", TransposeKernel)
  ADD("concat_grad", ConcatGradKernel)
  ADD("expand_grad", ExpandGradKernel)
  ADD("slice_grad", SliceGradKernel)

  using Unscale = KERNEL_OF(__COUNTER__, CheckFiniteAndUnscaleKernel);
  add_half_kernel<Unscale>(
      "check_finite_and_unscale",
      phi::KernelImpl<decltype(&Unscale::run_legacy), &Unscale::run_legacy>::Compute);

  // Paddle adds float32 gradients to half-precision ones through this kernel.
  using Add = KERNEL_OF(__COUNTER__, AddKernel);
  Add::name = "add";
  add_kernel("add", reinterpret_cast<void *>(&Add::run), DataType::FLOAT32);

  // What zeroes a gradient: the fallback would write to the device's memory from the host.
  using Full = KERNEL_OF(__COUNTER__, FullKernel);
  add_half_kernel<Full>("full");
  add_kernel("full", reinterpret_cast<void *>(&Full::run), DataType::FLOAT32);

  using Adamw = AdamwKernel<decltype(&phi::AdamwDenseKernel<float, CPUContext>)>;
  for (DataType half : {DataType::FLOAT16, DataType::BFLOAT16})
    add_kernel("adamw", reinterpret_cast<void *>(&Adamw::run), half);
}
