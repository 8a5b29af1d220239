// The generic kernels over the ARM vector layers, against plain scalar code after docs/arithmetic.md, bit by bit.
// Built once with NEON's vec.h in the include path and once for each SVE vector length with SVE's.
#include "vec.h"

#include "generic/epilogue.h"
#include "generic/gemm.h"
#include "generic/kv_codes.h"
#include "generic/norm.h"
#include "generic/pack.h"

#include <initializer_list>

#include "check.h"

#if !defined(__aarch64__)
#error "this program is for 64-bit ARM"
#endif

namespace {

using namespace di;

struct Random {
    uint64_t state = 88172645463325252u;
    float next() {  // in [-1, 1)
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        return static_cast<float>(static_cast<int32_t>(state >> 32)) * 0x1p-31f;
    }
};

// Zeroed, cache-line aligned memory that lives as long as the program.
template <class T>
T* array(size_t n) {
    const size_t bytes = (n * sizeof(T) + 63) / 64 * 64;
    void* p = aligned_alloc(64, bytes);
    CHECK(p);
    return static_cast<T*>(memset(p, 0, bytes));
}

bool same(float a, float b) { return memcmp(&a, &b, sizeof a) == 0; }

void flush_denormals() {
    uint64_t fpcr;
    asm volatile("mrs %0, fpcr" : "=r"(fpcr));
    asm volatile("msr fpcr, %0" ::"r"(fpcr | 1u << 24));
}

View activation(void* data, DType type, int rows, int cells) { return {data, rows, cells * kCell, cells, 0, type}; }

float& element(const View& v, int m, int c) { return v.row<float>(m)[c / kCell * v.step() + c % kCell]; }

float expected_product(const float* x, const float* w, int cells) {
    float total = 0.0f;
    for (int s = 0; s < segments(cells); ++s) {
        float acc = 0.0f;
        for (int c = segment_begin(cells, s); c < segment_begin(cells, s + 1); ++c) {
            float te = 0.0f, to = 0.0f;
            for (int k = c * kCell; k < (c + 1) * kCell; k += 2) {
                te = __builtin_fmaf(x[k], w[k], te);
                to = __builtin_fmaf(x[k + 1], w[k + 1], to);
            }
            acc = acc + (te + to);
        }
        total = s == 0 ? acc : total + acc;
    }
    return total;
}

float rounded(DType type, float x) {
    float narrow, wide;  // 16 bits or 32
    convert(&narrow, type, &x, DType::F32, 1);
    convert(&wide, DType::F32, &narrow, type, 1);
    return wide;
}

void check_product(DType type, int M, int N, int cells) {
    Random random;
    const int K = cells * kCell;
    float *x = array<float>(M * K), *w = array<float>(N * K);
    for (int i = 0; i < M * K; ++i) x[i] = type == DType::BF16 ? rounded(type, random.next()) : random.next();
    for (int i = 0; i < N * K; ++i) w[i] = rounded(type, random.next());

    const void** rows = array<const void*>(N);
    for (int n = 0; n < N; ++n) rows[n] = w + static_cast<size_t>(n) * K;
    char* panels = array<char>(N * K * sizeof(float));
    pack(panels, type, rows, DType::F32, K, K, K, 0, N / kCell);

    const DType x_type = type == DType::BF16 ? DType::BF16 : DType::F32;
    Gemm g{};
    g.x = activation(array<float>(round_up(M, kCell) * K), x_type, M, cells);
    g.w = panels;
    g.y = activation(array<float>(round_up(M, kCell) * N), DType::F32, M, N / kCell);
    g.k_cells = cells;
    g.scratch = array<float>(Gemm::scratch_floats());
    for (int m = 0; m < M; ++m) {
        for (int k = 0; k < K; ++k) {
            if (x_type == DType::F32) {
                element(g.x, m, k) = x[m * K + k];
            } else {
                bf16* to = g.x.row<bf16>(m) + k / kCell * g.x.step() + k % kCell;
                convert(to, DType::BF16, x + m * K + k, DType::F32, 1);
            }
        }
    }
    const auto run = type == DType::F32 ? gemm_f32 : type == DType::F16 ? gemm_f16 : gemm_bf16;
    run(g, 0, M, 0, N / kCell);
    for (int m = 0; m < M; ++m) {
        for (int n = 0; n < N; ++n) CHECK(same(element(g.y, m, n), expected_product(x + m * K, w + n * K, cells)));
    }
}

void check_products(DType type) {
    for (int M : {1, 3, 34}) check_product(type, M, 64, 3);
    check_product(type, 2, 32, 66);  // two segments
}

void products_f32() { check_products(DType::F32); }
void products_f16() { check_products(DType::F16); }
void products_bf16() { check_products(DType::BF16); }

void rms_norms() {
    Random random;
    const int M = 35, n = 75, cells = 3;
    Norm a{};
    a.x = activation(array<float>(2 * kCellSize * cells), DType::F32, M, cells);
    a.y = activation(array<float>(2 * kCellSize * cells), DType::F32, M, cells);
    float* weight = array<float>(cells * kCell);
    for (int c = 0; c < n; ++c) weight[c] = random.next();
    a.weight = weight;
    a.cols = n;
    a.eps = 1e-6f;
    for (int m = 0; m < M; ++m) {
        for (int c = 0; c < n; ++c) element(a.x, m, c) = 3.0f * random.next();
    }
    rms_norm(a, 0, M);
    for (int m = 0; m < M; ++m) {
        float lanes[16] = {};
        for (int c = 0; c < cells * kCell; ++c) {
            const float v = element(a.x, m, c);
            lanes[c % 16] = __builtin_fmaf(v, v, lanes[c % 16]);
        }
        for (int step = 8; step > 0; step /= 2) {
            for (int i = 0; i < step; ++i) lanes[i] = lanes[i] + lanes[i + step];
        }
        const float inverse = 1.0f / __builtin_sqrtf(lanes[0] / static_cast<float>(n) + a.eps);
        for (int c = 0; c < n; ++c) CHECK(same(element(a.y, m, c), element(a.x, m, c) * inverse * weight[c]));
    }
}

float expected_exp(float x) {
    if (x != x) return x;
    const float t = (x > 88.0f ? 88.0f : x) * 1.44269504088896341f, n = __builtin_floorf(t);
    if (t < -126.0f) return 0.0f;
    float r = t - n;
    if (r + n > t) r = __builtin_nextafterf(r, -1.0f);
    float p = 1.8793186e-3f;
    for (float c : {8.990995e-3f, 5.5818677e-2f, 2.4015927e-1f, 6.931517e-1f, 1.0f}) p = __builtin_fmaf(p, r, c);
    return p * __builtin_ldexpf(1.0f, static_cast<int>(n));
}

void elementary() {
    Random random;
    for (int i = 0; i < 4000; ++i) {
        float x[16], y[16];
        for (float& v : x) v = random.next() * (i % 2 ? 100.0f : 3.0f);
        x[i % 16] = i % 3 ? x[0] : __builtin_inff();
        exp(Vec::load(x)).store(y);
        for (int j = 0; j < 16; ++j) CHECK(same(y[j], expected_exp(x[j])));
        activate(Act::Silu, Vec::load(x)).store(y);
        for (int j = 0; j < 16; ++j) CHECK(same(y[j], x[j] / (1.0f + expected_exp(-x[j]))));
    }
}

void lanes() {
    float x[16], y[16];
    for (int i = 0; i < 16; ++i) x[i] = static_cast<float>(i * i);
    const Vec v = Vec::load(x);
    CHECK(v.reduce_max() == 225.0f && v.reduce_add() == 1240.0f && v.lane(5) == 25.0f);
    for (int n = -1; n <= 17; ++n) {
        memset(y, 0, sizeof y);
        v.store_partial(y, n);
        for (int i = 0; i < 16; ++i) {
            const float kept = i < n ? x[i] : 0.0f;
            CHECK(y[i] == kept && Vec::load_partial(x, n).lane(i) == kept);
            CHECK(select(Vec::first_n(n), v, Vec::zero()).lane(i) == kept);
        }
    }
    const float nan = __builtin_nanf("");
    x[11] = nan;
    CHECK(is_nan(Vec::load(x)).any() && !is_nan(v).any());
    CHECK(Vec::load(x).reduce_max() != Vec::load(x).reduce_max());
    CHECK(max(Vec::set(nan), Vec::set(2.0f)).lane(0) == 2.0f && min(Vec::set(nan), Vec::set(2.0f)).lane(0) == 2.0f);
    CHECK(select(less(v, Vec::set(50.0f)) & !equal(v, Vec::set(4.0f)), v, -v).lane(2) == -4.0f);
}

// Rounding to 16 bits, special values included: the expected bits are those of the x86 tiers.
void rounding() {
    struct Expected {
        uint32_t from;
        bf16 b;
        f16 h;
    };
    const Expected table[] = {
        {0x3f800000, 0x3f80, 0x3c00}, {0x3f808000, 0x3f80, 0x3c04}, {0x3f818000, 0x3f82, 0x3c0c},
        {0xbf80ffff, 0xbf81, 0xbc08}, {0x7f7fffff, 0x7f80, 0x7c00}, {0xff800000, 0xff80, 0xfc00},
        {0x7fffffff, 0x7fff, 0x7fff}, {0x7f800001, 0x7fc0, 0x7e00}, {0x00400000, 0x0000, 0x0000},
        {0x80000000, 0x8000, 0x8000}, {0x33800000, 0x3380, 0x0001}, {0x387fe000, 0x3880, 0x0400},
    };
    for (const Expected& e : table) {
        bf16 b;
        f16 h;
        convert(&b, DType::BF16, &e.from, DType::F32, 1);
        convert(&h, DType::F16, &e.from, DType::F32, 1);
        CHECK(b == e.b && h == e.h);
    }
}

// A cell of codes, written token by token, expands into code - zero point where a bf16 cell has that element.
template <int kBits>
void check_codes() {
    using Codes = KvCodes<kBits>;
    Random random;
    uint8_t *k = array<uint8_t>(Codes::kCellBytes), *v = array<uint8_t>(Codes::kCellBytes), code[kCell][kCell];
    float* zeros = array<float>(kCell);
    bf16 *from_k = array<bf16>(kCellSize), *from_v = array<bf16>(kCellSize);
    const auto any = [&] { return static_cast<int>((random.next() + 1.0f) * 0.5f * Codes::kLargest); };
    for (int token = kCell - 1; token >= 0; --token) {
        for (uint8_t& c : code[token]) c = static_cast<uint8_t>(any());
        zeros[token] = static_cast<float>(any());
        Codes::store_k(k, code[token], token);
        Codes::store_v(v, code[token], token);
    }
    Codes::expand_k(from_k, k, zeros, nullptr);
    Codes::expand_v(from_v, v, zeros, v);
    for (int token = 0; token < kCell; ++token) {
        for (int d = 0; d < kCell; ++d) {
            const float expected = static_cast<float>(code[token][d]) - zeros[token];
            float got[2];
            convert(got, DType::F32, from_k + panel_index_16(1, token, d), DType::BF16, 1);
            convert(got + 1, DType::F32, from_v + panel_index_16(1, d, token), DType::BF16, 1);
            CHECK(same(got[0], expected) && same(got[1], expected));
        }
    }
}

void kv_codes() {
    check_codes<8>();
    check_codes<4>();
}

constexpr Case kCases[] = {
    {"products_f32", products_f32}, {"products_f16", products_f16}, {"products_bf16", products_bf16},
    {"rms_norms", rms_norms},       {"elementary", elementary},     {"lanes", lanes},
    {"rounding", rounding},         {"kv_codes", kv_codes},
};

}  // namespace

int main(int argc, char** argv) {
    flush_denormals();
    return run_case(kCases, argc > 1 ? argv[1] : "");
}
