// The kernels as XLA calls them, by its foreign function interface, and what Python asks the library.

#include "kernels.cc"
#include "xla/ffi/api/ffi.h"

namespace tbptt {
namespace ffi = xla::ffi;
using In = ffi::AnyBuffer;
using Out = ffi::Result<ffi::AnyBuffer>;
using Shape = std::vector<int64_t>;

// Arguments are checked in Python too; this says what a call by someone else did wrong.
struct Mismatch {
  std::string text;
};
template <class T> T* pointer(const ffi::AnyBuffer& x, const char* name, ffi::DataType type, const Shape& shape,
                              bool optional = false) {
  if (optional && x.element_count() == 0) return nullptr;
  const auto dims = x.dimensions();
  if (x.element_type() != type || Shape(dims.begin(), dims.end()) != shape) {
    std::string wanted, given;
    for (auto d : shape) wanted += " " + std::to_string(d);
    for (auto d : dims) given += " " + std::to_string(d);
    throw Mismatch{std::string("tbptt: ") + name + " must have the shape [" + wanted + " ], but has [" + given + " ]" +
                   (x.element_type() != type ? " of another type" : "")};
  }
  return (T*)x.untyped_data();
}
inline float* f32(const ffi::AnyBuffer& x, const char* name, const Shape& shape, bool optional = false) {
  return pointer<float>(x, name, ffi::DataType::F32, shape, optional);
}
inline Pool pool_of(ffi::ThreadPool& pool) {
  return {(size_t)pool.num_threads(), [&pool](std::function<void()> task) { pool.Schedule(std::move(task)); }};
}
template <class Do> ffi::Error guarded(Do&& work) {  // no exception may pass through XLA
  try {
    work();
    return ffi::Error::Success();
  } catch (const Mismatch& wrong) {
    return ffi::Error::InvalidArgument(wrong.text);
  } catch (const std::exception& error) {
    return ffi::Error(ffi::ErrorCode::kInternal, std::string("tbptt: ") + error.what());
  }
}

// gates G: 4 for LSTM, 3 for GRU. What a call does not have is of size 0; it has x and w_x, or z_x.
ffi::Error unroll_forward(ffi::ThreadPool pool, In inputs, In w_x, In z_x, In w_h, In bias, In b_h, In hidden0, In cell0,
                          In reset, In initial_hidden, In initial_cell, In mask, Out hidden, Out cell, Out gates, Out entered,
                          int32_t G) {
  return guarded([&] {
    const bool given = z_x.element_count() > 0;
    const auto dims = (given ? z_x : inputs).dimensions();
    if (dims.size() != 3 || (G != 3 && G != 4)) throw Mismatch{"tbptt: inputs must have the shape [T, B, ...]"};
    if (dims[0] == 0) throw Mismatch{"tbptt: a window must have at least one step"};
    if (w_h.dimensions().size() != 2) throw Mismatch{"tbptt: w_h must be a matrix"};
    const int64_t T = dims[0], B = dims[1], H = w_h.dimensions()[0], D = given ? 0 : dims[2];
    const bool full = entered->element_type() == ffi::DataType::F32, is_lstm = G == 4;
    const int64_t depth = full ? D + H : padded<bf16>(D + H);
    Forward x;
    x.T = T, x.B = B, x.H = H, x.D = D;
    x.x = f32(inputs, "inputs", {T, B, D}, given);
    x.w_x = f32(w_x, "w_x", {D, G * H}, given);
    x.z_x = f32(z_x, "z_x", {T, B, G * H}, !given);
    x.w_h = f32(w_h, "w_h", {H, G * H});
    x.bias = f32(bias, "bias", {G * H});
    x.b_h = f32(b_h, "b_h", {H}, is_lstm);
    x.hidden0 = f32(hidden0, "hidden", {B, H});
    x.cell0 = f32(cell0, "cell", {B, H}, !is_lstm);
    x.reset = pointer<bool>(reset, "reset", ffi::DataType::PRED, {T, B}, true);
    x.initial_hidden = f32(initial_hidden, "the initial hidden state", {B, H}, true);
    x.initial_cell = f32(initial_cell, "the initial cell", {B, H}, true);
    x.mask = f32(mask, "mask", {B, H}, true);
    x.hidden = f32(*hidden, "hidden", {T, B, H});
    x.cell = f32(*cell, "cell", {T, B, H}, !is_lstm);
    x.gates = f32(*gates, "gates", {T, B, 4 * H});
    x.entered = pointer<void>(*entered, "entered", full ? ffi::DataType::F32 : ffi::DataType::BF16, {T, B, depth});
    auto* loop = is_lstm ? (full ? forward<4, float> : forward<4, bf16>) : (full ? forward<3, float> : forward<3, bf16>);
    loop(pool_of(pool), x);
  });
}

ffi::Error unroll_backward(ffi::ThreadPool pool, In d_outputs, In d_hidden, In d_cell, In w_h, In gates, In states, In first,
                           In reset, In scale, In initial, In mask, Out d_z, Out d_inputs, Out d_hidden0, Out d_cell0,
                           Out d_initial_hidden, Out d_initial_cell, int32_t G, int32_t rounds) {
  return guarded([&] {
    const auto dims = d_outputs.dimensions();
    if (dims.size() != 3 || (G != 3 && G != 4)) throw Mismatch{"tbptt: d_outputs must have the shape [T, B, H]"};
    if (dims[0] == 0) throw Mismatch{"tbptt: a window must have at least one step"};
    const int64_t T = dims[0], B = dims[1], H = dims[2];
    const bool is_lstm = G == 4;
    Backward x;
    x.T = T, x.B = B, x.H = H;
    x.d_outputs = f32(d_outputs, "d_outputs", {T, B, H});
    x.d_hidden = f32(d_hidden, "d_hidden", {B, H});
    x.d_cell = f32(d_cell, "d_cell", {B, H}, !is_lstm);
    x.w_h = f32(w_h, "w_h", {H, G * H});
    x.gates = f32(gates, "gates", {T, B, 4 * H});
    x.states = f32(states, "states", {T, B, H});
    x.first = f32(first, "the first state", {B, H});
    x.reset = pointer<bool>(reset, "reset", ffi::DataType::PRED, {T, B}, true);
    x.scale = f32(scale, "gradient_scale", {T, B}, true);
    x.initial = f32(initial, "the initial state", {B, H}, true);
    x.mask = f32(mask, "mask", {B, H}, true);
    x.d_z = f32(*d_z, "d_z", {T, B, G * H});
    x.d_inputs = f32(*d_inputs, "d_inputs", {T, B, G * H}, is_lstm);
    x.d_hidden0 = f32(*d_hidden0, "d_hidden0", {B, H});
    x.d_cell0 = f32(*d_cell0, "d_cell0", {B, H}, !is_lstm);
    x.d_initial_hidden = f32(*d_initial_hidden, "d_initial_hidden", {B, H}, true);
    x.d_initial_cell = f32(*d_initial_cell, "d_initial_cell", {B, H}, true);
    auto* loop = is_lstm ? (rounds ? backward<4, bf16> : backward<4, float>) : (rounds ? backward<3, bf16> : backward<3, float>);
    loop(pool_of(pool), x);
  });
}

// The rows of the result from its first dimension on are `more`, which may be of size 0.
ffi::Error matrix_product(ffi::ThreadPool pool, In a, In b, Out c, Out more, int32_t transpose_a, int32_t transpose_b,
                          int32_t rounds) {
  return guarded([&] {
    const auto left = a.dimensions(), right = b.dimensions(), result = c->dimensions();
    if (left.size() != 2 || right.size() != 2 || result.size() != 2) throw Mismatch{"tbptt: the operands of a product must be matrices"};
    const bool narrow = a.element_type() == ffi::DataType::BF16;  // rows of the forward loop, padded
    const int64_t further = more->element_count() ? more->dimensions()[0] : 0;
    const int64_t M = result[0] + further, K = left[transpose_a ? 0 : 1], N = result[1];
    if (narrow && (!transpose_a || !rounds || left[1] < M)) throw Mismatch{"tbptt: a bfloat16 operand must be transposed"};
    Product x{size_t(M), size_t(K), size_t(N)};
    x.a = narrow ? pointer<void>(a, "a", ffi::DataType::BF16, {K, left[1]}) : f32(a, "a", transpose_a ? Shape{K, M} : Shape{M, K});
    x.a_stride = left[1], x.a_is_rounded = narrow;
    x.b = f32(b, "b", transpose_b ? Shape{N, K} : Shape{K, N});
    x.transpose_a = transpose_a, x.transpose_b = transpose_b;
    x.c = f32(*c, "c", {result[0], N});
    x.more = f32(*more, "more", {further, N}, true);
    if (further) x.split = result[0];
    (rounds ? product<bf16> : product<float>)(pool_of(pool), x);
  });
}

ffi::Error squares(ffi::ThreadPool pool, In x, Out sum) {
  return guarded([&] {
    const auto dims = x.dimensions();
    const float* data = f32(x, "x", Shape(dims.begin(), dims.end()));
    *f32(*sum, "sum", {}) = sum_of_squares(pool_of(pool), data, x.element_count());
  });
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(tbptt_unroll_forward, unroll_forward, ffi::Ffi::Bind().Ctx<ffi::ThreadPool>()
    .Arg<In>().Arg<In>().Arg<In>().Arg<In>().Arg<In>().Arg<In>().Arg<In>().Arg<In>().Arg<In>().Arg<In>().Arg<In>().Arg<In>()
    .Ret<In>().Ret<In>().Ret<In>().Ret<In>().Attr<int32_t>("gates"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(tbptt_unroll_backward, unroll_backward, ffi::Ffi::Bind().Ctx<ffi::ThreadPool>()
    .Arg<In>().Arg<In>().Arg<In>().Arg<In>().Arg<In>().Arg<In>().Arg<In>().Arg<In>().Arg<In>().Arg<In>().Arg<In>()
    .Ret<In>().Ret<In>().Ret<In>().Ret<In>().Ret<In>().Ret<In>().Attr<int32_t>("gates").Attr<int32_t>("rounds"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(tbptt_product, matrix_product, ffi::Ffi::Bind().Ctx<ffi::ThreadPool>()
    .Arg<In>().Arg<In>().Ret<In>().Ret<In>().Attr<int32_t>("transpose_a").Attr<int32_t>("transpose_b").Attr<int32_t>("rounds"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(tbptt_sum_of_squares, squares, ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<In>().Ret<In>());

}  // namespace tbptt

extern "C" {

const char* tbptt_path() { return tbptt::PATH; }

const char* tbptt_self_check() { return tbptt::self_check(); }

// Returns a sentence unless XLA's interface is the one of the header that this file includes.
const char* tbptt_check_interface(const XLA_FFI_Api* api) {
  static char text[160];
  const int major = api->api_version.major_version, minor = api->api_version.minor_version;
  if (major == XLA_FFI_API_MAJOR && minor >= XLA_FFI_API_MINOR) return tbptt::allow_tiles();
  snprintf(text, sizeof text, "XLA's foreign function interface is version %d.%d, but the header is of %d.%d",
           major, minor, XLA_FFI_API_MAJOR, XLA_FFI_API_MINOR);
  return text;
}

// Returns a sentence if XLA does not take the handler.
const char* tbptt_register(const XLA_FFI_Api* api, const char* name, const char* platform, XLA_FFI_Handler* handler) {
  static char text[400];
  XLA_FFI_Handler_Register_Args args{};
  args.struct_size = XLA_FFI_Handler_Register_Args_STRUCT_SIZE;
  args.name = {name, strlen(name)};
  args.platform = {platform, strlen(platform)};
  args.bundle.execute = handler;
  XLA_FFI_Error* error = api->XLA_FFI_Handler_Register(&args);
  if (error == nullptr) return nullptr;
  XLA_FFI_Error_GetMessage_Args message{};
  message.struct_size = XLA_FFI_Error_GetMessage_Args_STRUCT_SIZE;
  message.error = error;
  api->XLA_FFI_Error_GetMessage(&message);
  snprintf(text, sizeof text, "XLA does not register %s: %s", name, message.message);
  XLA_FFI_Error_Destroy_Args destroy{};
  destroy.struct_size = XLA_FFI_Error_Destroy_Args_STRUCT_SIZE;
  destroy.error = error;
  api->XLA_FFI_Error_Destroy(&destroy);
  return text;
}

}  // extern "C"
