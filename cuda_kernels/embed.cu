// Embedding: tokens[T] → hidden states[T,H], from a table or from the codes of a tied output layer.
#include "codes.cuh"
#include "view.cuh"

namespace di {
namespace {

// The token of a row: given, or the last one drawn for a sequence slot.
__device__ __forceinline__ int token_of(const EmbedArgs& e, int row) {
    int token = e.tokens[row];
    if (token < 0) token = e.last_token[-1 - token];
    return token < 0 ? 0 : token >= e.vocab ? e.vocab - 1 : token;
}

// The place of a row in the ascending list of rows that bring their hidden state, or -1.
__device__ __forceinline__ int external_of(const EmbedArgs& e, int row) {
    if (!e.external_count) return -1;
    int low = 0, high = *e.external_count;
    while (low < high) {
        const int middle = (low + high) / 2;
        if (e.external_row[middle] < row)
            low = middle + 1;
        else
            high = middle;
    }
    return low < *e.external_count && e.external_row[low] == row ? low : -1;
}

// value(token, column) is an element of the table as a number.
template <class Value>
__device__ __forceinline__ void embed_row(const EmbedArgs& e, Value value) {
    const int row = blockIdx.x;
    if (row >= count(e.rows)) return;
    const int external = external_of(e, row);
    const int token = token_of(e, row);
    for (int c = threadIdx.x; c < e.out.cols; c += blockDim.x) {
        float y = 0;
        if (c < e.hidden)
            y = external >= 0 ? e.external[static_cast<int64_t>(external) * e.hidden + c] : value(token, c) * e.scale;
        store1(e.out, row, c, y);
    }
}

}  // namespace
}  // namespace di

extern "C" __global__ void __launch_bounds__(256) embed(di::EmbedArgs e) {
    di::embed_row(e, [&](int token, int c) { return di::load_as(e.table, token * e.table_stride + c, e.table_dtype); });
}
EXPORT_KERNEL(embed)

extern "C" __global__ void __launch_bounds__(256) embed_codes(di::EmbedCodesArgs a) {
    di::embed_row(a.e, [&](int token, int c) { return di::code_value(a.w, token, c); });
}
EXPORT_KERNEL(embed_codes)
