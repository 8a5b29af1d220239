// Between the projections and attention: head norms, rope, and the store of k and v in the cache. A warp has one head
// of one token.
#include "kv.cuh"

namespace di {
namespace {

// x = x / sqrt(mean(x²) + eps) · w
__device__ __forceinline__ void norm_head(float* x, const float* w, int D, float eps, int lane) {
    float squares = 0;
    for (int c = lane; c < D; c += 32) squares = fmaf(x[c], x[c], squares);
    const float inverse = 1.0f / sqrtf(warp_sum(squares) / static_cast<float>(D) + eps);
    for (int c = lane; c < D; c += 32) x[c] = x[c] * inverse * w[c];
    __syncwarp();
}

// Turns the pairs (i, i + h), or (2i, 2i + 1), by the table's angles.
__device__ __forceinline__ void rotate_head(float* x, const HeadsArgs& a, int t, int lane) {
    const int half = a.rotary / 2;
    for (int i = lane; i < half; i += 32) {
        const int first = a.interleaved ? 2 * i : i, second = a.interleaved ? 2 * i + 1 : i + half;
        const float cos = load1(a.table, t, i), sin = load1(a.table, t, half + i);
        const float u = x[first], v = x[second];
        x[first] = fmaf(u, cos, -(v * sin));
        x[second] = fmaf(v, cos, u * sin);
    }
    __syncwarp();
}

__device__ __forceinline__ float clamped(float x, float high) { return fminf(fmaxf(x, 0.0f), high); }

// x as codes that stand for (code - zero) · scale; columns beyond D get the zero point. A head with a number that is
// not finite has the scale NaN.
__device__ inline void store_codes(const float* x, int D, const KvPool& kv, uint8_t* row, float2* grid, int lane) {
    const float largest = kv.dtype == U8 ? 255.0f : 15.0f;
    float low = 0, high = 0, finite = 0;  // the range holds 0; finite: 0, or NaN
    for (int c = lane; c < D; c += 32) {
        low = fminf(low, x[c]);
        high = fmaxf(high, x[c]);
        finite = finite + x[c] * 0.0f;
    }
    low = -warp_max(-low);
    high = warp_max(high);
    finite = warp_sum(finite);
    const bool broken = finite != finite;
    const float scale = broken ? 1.0f : fmaxf((high - low) / largest, 1e-5f);
    const float zero = broken ? 0.0f : rintf(-low / scale);
    const auto code = [&](int c) -> uint32_t {
        if (broken) return 0;
        return static_cast<uint32_t>(c < D ? clamped(rintf(x[c] / scale) + zero, largest) : zero);
    };
    if (kv.dtype == U8)
        for (int c = lane; c < kv.head_size; c += 32) row[c] = static_cast<uint8_t>(code(c));
    else
        for (int c = lane; c < kv.head_size / 2; c += 32)
            row[c] = static_cast<uint8_t>(code(2 * c) | code(2 * c + 1) << 4);
    if (lane == 0) *grid = make_float2(broken ? __int_as_float(0x7fc00000) : scale, zero);
}

__device__ __forceinline__ void store_head(const float* x, const HeadsArgs& a, int which, int head, int t, int lane) {
    const int slot = a.kv_slot[t];
    if (slot < 0) return;
    const int block = slot / a.kv.block_tokens, token = slot % a.kv.block_tokens;
    uint8_t* row = kv_row(a.kv, a.layer, block, which, head, token);
    if (is_codes(a.kv)) {
        store_codes(x, a.D, a.kv, row, kv_grid(a.kv, a.layer, block, which, head, token), lane);
        return;
    }
    for (int c = lane; c < a.kv.head_size; c += 32) store_as(row, c, a.kv.dtype, c < a.D ? x[c] : 0.0f);
}

}  // namespace
}  // namespace di

extern "C" __global__ void __launch_bounds__(32) rope_kv(di::HeadsArgs a) {
    using namespace di;
    const int t = blockIdx.x, lane = threadIdx.x;
    if (t >= count(a.rows)) return;
    SHARED(float, x, kMaxHead);
    int head = blockIdx.y;
    const bool is_q = a.q.data && head < a.Hq;
    if (a.q.data) head -= is_q ? 0 : a.Hq;
    const bool is_v = !is_q && head >= a.Hkv;
    head -= is_v ? a.Hkv : 0;
    const View& from = is_q ? a.q : is_v ? a.v : a.k;

    for (int c = lane; c < a.D; c += 32) x[c] = load1(from, t, head * a.head + c);
    __syncwarp();
    if (!is_v) {
        const float* norm = is_q ? a.q_norm : a.k_norm;
        if (norm) norm_head(x, norm, a.D, a.eps, lane);
        if (a.table.data) rotate_head(x, a, t, lane);
    }
    if (!is_v)
        for (int c = lane; c < a.D; c += 32) store1(from, t, head * a.head + c, x[c]);
    if (is_q) return;
    store_head(x, a, is_v, head, t, lane);
}
EXPORT_KERNEL(rope_kv)

extern "C" __global__ void __launch_bounds__(256) kv_clear(di::KvClearArgs a) {
    using namespace di;
    if (static_cast<int>(blockIdx.x) >= count(a.count)) return;
    uint4* block = reinterpret_cast<uint4*>(a.kv.data + a.blocks[blockIdx.x] * a.kv.block_bytes);
    const int64_t step = static_cast<int64_t>(gridDim.y) * blockDim.x;
    for (int64_t i = blockIdx.y * blockDim.x + threadIdx.x; i < a.kv.block_bytes / 16; i += step)
        block[i] = make_uint4(0, 0, 0, 0);
}
EXPORT_KERNEL(kv_clear)
