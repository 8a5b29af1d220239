// Mixtures of experts around their products: routing, rows sorted by expert, and the weighted sum.
#include "math.cuh"
#include "reduce.cuh"
#include "row_set.cuh"

namespace di {
namespace {

constexpr int kMaxExperts = 1024;

// Larger for what is chosen first: the logit (a NaN counts as -inf), then the lower id.
__device__ __forceinline__ unsigned long long choice(float x, int id) {
    uint32_t u = __float_as_uint(x != x ? __uint_as_float(0xff800000u) : x == 0.0f ? 0.0f : x);
    u = u & 0x80000000u ? ~u : u | 0x80000000u;
    return static_cast<unsigned long long>(u) << 32 | ~static_cast<uint32_t>(id);
}

}  // namespace
}  // namespace di

// softmax over all, the `chosen` largest, in ascending order of their ids
extern "C" __global__ void __launch_bounds__(32) route(di::RouteArgs a) {
    using namespace di;
    SHARED(float, logit, kMaxExperts);
    const int t = blockIdx.x, lane = threadIdx.x;
    if (t >= count(a.rows)) return;
    float top = __uint_as_float(0xff800000u);
    bool broken = false;
    for (int e = lane; e < a.experts; e += 32) {
        logit[e] = load1(a.logits, t, e);
        top = fmaxf(top, logit[e]);
        broken = broken || logit[e] != logit[e];
    }
    top = warp_max(top);
    if (__any_sync(kWarp, broken)) top = __uint_as_float(0x7fc00000u);  // and so are all the weights
    float sum = 0;
    for (int e = lane; e < a.experts; e += 32) sum += exp_spec(logit[e] - top);
    sum = warp_sum(sum);

    unsigned long long least = ~0ull;  // the last choice so far
    for (int j = 0; j < a.chosen; ++j) {
        unsigned long long best = 0;
        for (int e = lane; e < a.experts; e += 32) {
            const unsigned long long c = choice(logit[e], e);
            if (c < least && c > best) best = c;
        }
        for (int bit = 16; bit; bit >>= 1) best = Max()(best, __shfl_xor_sync(kWarp, best, bit));
        least = best;
    }
    float* out = static_cast<float*>(a.out.data) + t * a.out.stride;
    float share = 0;
    int place = 0;
    for (int first = 0; first < a.experts; first += 32) {
        const int e = first + lane;
        const bool is_chosen = e < a.experts && choice(logit[e < a.experts ? e : 0], e) >= least;
        const uint32_t all = __ballot_sync(kWarp, is_chosen);
        if (is_chosen) {
            const int j = place + __popc(all & ((1u << lane) - 1));
            const float p = exp_spec(logit[e] - top) / sum;
            out[j] = __int_as_float(e);
            out[a.chosen + j] = p;
            share += p;
        }
        place += __popc(all);
    }
    share = warp_sum(share);
    __syncwarp();
    for (int j = lane; j < a.chosen; j += 32) {
        const float p = out[a.chosen + j];
        out[a.chosen + j] = (a.renormalize ? p / share : p) * a.scale;
    }
    for (int c = 2 * a.chosen + lane; c < a.out.cols; c += 32) out[c] = 0;
}
EXPORT_KERNEL(route)

extern "C" __global__ void __launch_bounds__(1024) expert_group(di::GroupArgs a) {
    using namespace di;
    SHARED(int, begin, kMaxExperts);  // first counts, then where an expert's rows begin, then where its next one goes
    const int total = count(a.rows) * a.chosen;
    const auto expert_of = [&](int row) {
        return clamped_expert(a.routing, a.routing_stride, a.chosen, a.experts, row);
    };
    for (int e = threadIdx.x; e < a.experts; e += blockDim.x) begin[e] = 0;
    __syncthreads();
    for (int row = threadIdx.x; row < total; row += blockDim.x) atomicAdd(&begin[expert_of(row)], 1);
    __syncthreads();
    if (threadIdx.x == 0) {
        int first = 0, tiles = 0;
        for (int e = 0; e < a.experts; ++e) {
            const int rows = begin[e];
            for (int r = 0; r < rows; r += a.tile_rows) a.tiles[tiles++] = {e, first + r, min(a.tile_rows, rows - r)};
            begin[e] = first;
            first += rows;
        }
        *a.n_tiles = tiles;
    }
    __syncthreads();
    for (int row = threadIdx.x; row < total; row += blockDim.x) a.list[atomicAdd(&begin[expert_of(row)], 1)] = row;
}
EXPORT_KERNEL(expert_group)

extern "C" __global__ void __launch_bounds__(256) expert_sum(di::ExpertSumArgs a) {
    using namespace di;
    const int t = blockIdx.x;
    if (t >= count(a.rows)) return;
    const float* weight = a.routing + t * a.routing_stride + a.chosen;
    for (int c = 4 * threadIdx.x; c < a.out.cols; c += 4 * blockDim.x) {
        Four total = a.residual.data ? load4(a.residual, t, c) : Four{};
        for (int j = 0; j < a.chosen; ++j) {
            const Four y = load4(a.y, t * a.chosen + j, c);
            for (int i = 0; i < 4; ++i) total.x[i] = fmaf(weight[j], y.x[i], total.x[i]);
        }
        store4(a.out, t, c, total);
    }
}
EXPORT_KERNEL(expert_sum)
