// A second device for torch whose memory is the host's: tensors lie on `npu:0`, and the processor computes for it.
//
// Real tensors, in every thread: an operation of tensors of two devices is an error, as on a graphics card, and memory ends
// where `set_limit` says. Kernels, formats and speed it says nothing about. The name is that of a backend that hosts know.

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <atomic>
#include <cstdlib>
#include <unordered_set>

#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/resize_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_as_complex_native.h>
#include <ATen/ops/view_as_real_native.h>
#include <ATen/ops/view_native.h>

namespace {

constexpr c10::DeviceType CARD = c10::DeviceType::PrivateUse1;
const c10::Device DEVICE(CARD, 0);

std::atomic<int64_t> used{0}, peak{0}, limit{int64_t(1) << 62}, asked{0}, refused{-1};

struct Block {
  void* data;
  int64_t bytes;
};

void release(void* context) {
  auto* block = static_cast<Block*>(context);
  used -= block->bytes;
  std::free(block->data);
  delete block;
}

struct CardAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t n) override {
    if (n == 0) return {nullptr, nullptr, &release_nothing, DEVICE};
    const auto bytes = static_cast<int64_t>((n + 511) / 512 * 512);
    const int64_t now = used += bytes;
    if (now > limit || asked++ == refused) {
      used -= bytes;
      TORCH_CHECK_WITH(OutOfMemoryError, false, "NPU out of memory. Tried to allocate ", bytes, " bytes; ", now - bytes,
                       " of ", limit.load(), " are in use.");
    }
    for (int64_t before = peak; before < now && !peak.compare_exchange_weak(before, now);) {}
    void* data = std::aligned_alloc(512, bytes);
    TORCH_CHECK_WITH(OutOfMemoryError, data != nullptr, "NPU out of memory: so is the host.");
    return {data, new Block{data, bytes}, &release, DEVICE};
  }
  static void release_nothing(void*) {}
  c10::DeleterFnPtr raw_deleter() const override { return nullptr; }
  void copy_data(void* dest, const void* src, std::size_t count) const override { default_copy_data(dest, src, count); }
};
CardAllocator allocator;

struct CardGuard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return CARD; }
  c10::Device exchangeDevice(c10::Device) const override { return DEVICE; }
  c10::Device getDevice() const override { return DEVICE; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const override { return c10::Stream(c10::Stream::DEFAULT, DEVICE); }
  c10::Stream exchangeStream(c10::Stream) const override { return getStream(DEVICE); }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
  void synchronizeDevice(const c10::DeviceIndex) const override {}
};

struct CardHooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  void setCurrentDevice(c10::DeviceIndex) const override {}
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override { return at::detail::getDefaultCPUGenerator(); }
  at::Generator getNewGenerator(c10::DeviceIndex) const override { return at::detail::createCPUGenerator(); }
  at::Device getDeviceFromPtr(void*) const override { return DEVICE; }
  at::Allocator* getPinnedMemoryAllocator() const override { return at::getCPUAllocator(); }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t bytes) const override {
    auto fresh = allocator.allocate(bytes);
    if (storage.data()) std::memcpy(fresh.get(), storage.data(), std::min(bytes, storage.nbytes()));
    storage.unsafeGetStorageImpl()->set_data_ptr_noswap(std::move(fresh));
    storage.unsafeGetStorageImpl()->set_nbytes(bytes);
  }
};

/// The same numbers as a tensor of the processor, without a copy.
at::Tensor here(const at::Tensor& tensor) {
  if (tensor.device().type() != CARD) return tensor;
  auto storage = tensor.storage();  // held by the result
  return at::from_blob(tensor.data_ptr(), tensor.sizes(), tensor.strides(), [storage](void*) {},
                       tensor.options().device(at::kCPU));
}

at::Tensor copy_from(const at::Tensor& self, const at::Tensor& dst, bool) {
  here(dst).copy_(here(self));
  return dst;
}

at::Tensor copy_from_and_resize(const at::Tensor& self, const at::Tensor& dst) {
  if (self.sizes() != dst.sizes()) dst.resize_(self.sizes());
  here(dst).copy_(here(self));
  return dst;
}

at::Tensor empty(at::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>, std::optional<at::Device>,
                 std::optional<bool>, std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(size, &allocator, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                   c10::dtype_or_default(dtype), format);
}

at::Tensor empty_strided(at::IntArrayRef size, at::IntArrayRef stride, std::optional<at::ScalarType> dtype,
                         std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(size, stride, &allocator, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                           c10::dtype_or_default(dtype));
}

at::Scalar local_scalar(const at::Tensor& self) { return here(self).item(); }

const at::Tensor& resize(const at::Tensor& self, c10::SymIntArrayRef size, std::optional<at::MemoryFormat> format) {
  return at::native::resize_(self, C10_AS_INTARRAYREF_SLOW(size), format);
}

at::Tensor& set_source(at::Tensor& self, at::Storage source, int64_t offset, at::IntArrayRef size, at::IntArrayRef stride) {
  return at::native::set_storage_cpu_(self, std::move(source), offset, size, stride);
}

at::Tensor convolution(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias, at::IntArrayRef stride,
                       at::IntArrayRef padding, at::IntArrayRef dilation, bool transposed, at::IntArrayRef output_padding, int64_t groups) {
  const bool biased = bias.has_value() && bias->defined();
  TORCH_CHECK(input.device() == weight.device() && (!biased || bias->device() == input.device()),
              "convolution: expected all tensors to be on the same device, but found at least two devices, npu:0 and cpu!");
  const auto bias_here = biased ? std::optional<at::Tensor>(here(*bias)) : std::nullopt;
  return at::convolution(here(input), here(weight), bias_here, stride, padding, dilation, transposed, output_padding, groups).to(DEVICE);
}

/// Everything else is computed by the processor, but never of tensors of two devices.
void computed_here(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  static const std::unordered_set<std::string> takes_indices_from_anywhere = {
      "aten::index", "aten::index_put_", "aten::_index_put_impl_", "aten::index_put"};
  const auto& name = op.schema().name();
  if (!takes_indices_from_anywhere.count(name)) {
    bool there = false, stranger = false;
    const auto look = [&](const at::Tensor& tensor) {
      if (!tensor.defined()) return;
      if (tensor.device().type() == CARD) there = true;
      else if (tensor.dim() > 0) stranger = true;
    };
    for (const auto& value : torch::jit::last(*stack, op.schema().arguments().size())) {
      if (value.isTensor()) look(value.toTensor());
      else if (value.isTensorList()) for (const at::Tensor& tensor : value.toTensorVector()) look(tensor);
      else if (value.isList())
        for (const auto& item : value.toListRef()) if (item.isTensor()) look(item.toTensor());
    }
    TORCH_CHECK(!(there && stranger), name, ": expected all tensors to be on the same device, but found at least two devices, npu:0 and cpu!");
  }
  at::native::cpu_fallback(op, stack);
}

}  // namespace

namespace at {
REGISTER_ALLOCATOR(CARD, &allocator)
C10_REGISTER_GUARD_IMPL(PrivateUse1, CardGuard);
}  // namespace at

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&computed_here>()); }

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("_copy_from", &copy_from);
  m.impl("_copy_from_and_resize", &copy_from_and_resize);
  m.impl("_local_scalar_dense", &local_scalar);
  m.impl("as_strided", &at::native::as_strided_tensorimpl);
  m.impl("view", &at::native::view);
  m.impl("_reshape_alias", &at::native::_reshape_alias);
  m.impl("unfold", &at::native::unfold);
  m.impl("view_as_real", &at::native::view_as_real);
  m.impl("view_as_complex", &at::native::view_as_complex);
  m.impl("convolution_overrideable", &convolution);
  m.impl("resize_", &resize);
  m.impl("set_.source_Storage_storage_offset", &set_source);
}

TORCH_LIBRARY(resshift_card, m) {
  m.def("start() -> ()", [] {
    static CardHooks hooks;
    if (!at::isPrivateUse1HooksRegistered()) at::RegisterPrivateUse1HooksInterface(&hooks);
  });
  m.def("used() -> int", [] { return used.load(); });
  m.def("peak() -> int", [] { return peak.load(); });
  m.def("asked() -> int", [] { return asked.load(); });
  m.def("reset_peak() -> ()", [] { peak = used.load(); });
  m.def("limit() -> int", [] { return limit.load(); });
  m.def("set_limit(int bytes) -> ()", [](int64_t bytes) { limit = bytes; });
  m.def("refuse(int number) -> ()", [](int64_t number) {  // the allocation after so many more, once
    asked = 0;
    refused = number;
  });
}
