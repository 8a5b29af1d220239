// The table of a tier whose kernels all come from generic/. Included last, after the tier's vec.h.
#pragma once
#include "../kernels.h"
#include "attention_fma.h"
#include "convert.h"
#include "elementwise.h"
#include "embed.h"
#include "experts.h"
#include "gemm.h"
#include "gemm_quant.h"
#include "instant_quant.h"
#include "kv_write.h"
#include "norm.h"
#include "pack.h"
#include "pack_codes.h"
#include "quantize.h"
#include "reduce.h"
#include "rope.h"

namespace di {
namespace {

template <class Dot>
constexpr KernelTable generic_table(const char* name) {
    KernelTable t{};
    t.name = name;
    t.gemm_f32 = gemm_f32;
    t.gemm_f16 = gemm_f16;
    t.gemm_bf16 = gemm_bf16;
    t.gemm_quant = gemm_quant<Dot>;
    t.quantize = quantize;
    t.instant_quant = instant_quant;
    t.pack_codes = pack_codes;
    t.embed_quant = embed_quant;
    t.pack = pack;
    t.convert = convert;
    t.rms_norm = rms_norm;
    t.layer_norm = layer_norm;
    t.embed = embed;
    t.rope = rope;
    t.kv_write = kv_write;
    t.act = act;
    t.mul = mul;
    t.add = add;
    t.scale = scale;
    t.softcap = softcap;
    t.cast = cast;
    t.route = route;
    t.add_weighted = add_weighted;
    t.gate_rows = gate_rows;
    t.attention_f32 = attention_f32;
    t.attention_bf16 = attention_bf16;
    t.attention_u8 = attention_u8;
    t.attention_u4 = attention_u4;
    t.attention_merge = attention_merge;
    t.max = row_max;
    t.block_maxima = block_maxima;
    t.sum_exp = sum_exp;
    t.exp_shifted = exp_shifted;
    t.read_sum = read_sum;
    return t;
}

}  // namespace
}  // namespace di
