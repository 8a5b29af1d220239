#include "launcher.h"

#include <cstring>

namespace di {

template <class Args>
int Launcher::launch(const Launch& how, Args& args) {
    if (how.grid_x == 0) return DI_OK;
    OpenDevice& device = *program_.device_;
    void* function;
    {
        const std::lock_guard<std::mutex> lock(device.lookups);
        function = device.modules.function(how.kernel, how.shared);
    }
    if (!function)
        return why_.fail(DI_EUNSUPPORTED, "no kernel %s with %d bytes of shared memory for this GPU", how.kernel,
                         how.shared);
    void* parameters[] = {&args};
    const int result =
        device.driver.cuLaunchKernel(function, static_cast<unsigned>(how.grid_x), static_cast<unsigned>(how.grid_y), 1,
                                     static_cast<unsigned>(how.block), 1, 1, static_cast<unsigned>(how.shared),
                                     program_.stream_, parameters, nullptr);
    return device.driver.check(result, why_, how.kernel);
}

View Launcher::view(int id) const {
    if (id < 0) return View{};
    const di_slot& s = slot(id);
    const di_slot& root = s.parent < 0 ? s : slot(s.parent);
    const auto at =
        static_cast<DevicePointer>(root.offset) + static_cast<DevicePointer>(s.first_col) * size_of(s.dtype);
    return {reinterpret_cast<void*>(program_.arena_.at() + at), root.cols, s.cols, s.dtype};
}

Rows Launcher::rows_of(int id) const {
    if (slot(id).rows == DI_ROWS_R) return tile_.rows;
    if (slot(id).rows == DI_ROWS_E)
        return {in_block<int32_t>(StepLayout::kCountE), size_.T * program_.desc_.experts_per_token};
    return {in_block<int32_t>(StepLayout::kCountT), size_.T};
}

const float* Launcher::vector(int weight) const {
    return weight < 0 ? nullptr : reinterpret_cast<const float*>(program_.weights_[static_cast<size_t>(weight)].data);
}

// ---- the order of a step ----

int Launcher::clear_blocks() {
    if (step_.n_clear == 0) return DI_OK;
    KvClearArgs args{program_.pool_, in_lists<int32_t>(program_.clear_at_), {nullptr, step_.n_clear}};
    return launch(launch_kv_clear(args), args);
}

int Launcher::body() {
    for (size_t i = 0; i < program_.body_.size(); ++i)
        if (const int bad = timed(program_.body_[i], program_.plan_of_[i])) return bad;
    return DI_OK;
}

int Launcher::tail(bool captured) {
    if (program_.tail_.empty()) return DI_OK;
    const int most = program_.desc_.tail_rows;
    for (int first = 0; first < size_.R; first += most) {
        const int count = std::min(most, size_.R - first);
        tile_ = {first, {captured ? in_block<int32_t>(StepLayout::kCountR) : nullptr, count}};
        for (const di_instr& in : program_.tail_) {
            if (const int bad = timed(in, -1)) return bad;
            if (in.op == DI_OP_HIDDEN && !captured && wants_no_tokens()) break;
        }
    }
    return DI_OK;
}

// Whether no row of the tile needs what comes after its hidden state.
bool Launcher::wants_no_tokens() const {
    for (int r = tile_.first; r < tile_.first + tile_.rows.most; ++r)
        if (!(step_.sample[r].flags & DI_SAMPLE_HIDDEN)) return false;
    return true;
}

// While profiling, each instruction is waited for.
int Launcher::timed(const di_instr& in, int plan) {
    if (!program_.profiling_) return instr(in, plan);
    const Driver& driver = program_.driver();
    driver.cuStreamSynchronize(program_.stream_);
    const auto begin = std::chrono::steady_clock::now();
    if (const int bad = instr(in, plan)) return bad;
    if (const int bad = driver.check(driver.cuStreamSynchronize(program_.stream_), why_, "an instruction failed"))
        return bad;
    const auto took = std::chrono::steady_clock::now() - begin;
    program_.op_ns_[in.op] += std::chrono::duration_cast<std::chrono::nanoseconds>(took).count();
    return DI_OK;
}

int Launcher::instr(const di_instr& in, int plan) {
    switch (in.op) {
        case DI_OP_EMBED:
            return embed(in);
        case DI_OP_ROPE_TABLE:
            return rope_table(in);
        case DI_OP_RMS_NORM:
        case DI_OP_LAYER_NORM:
            return norm(in);
        case DI_OP_LINEAR:
            return linear(in);
        case DI_OP_QUANTIZE:
            return quantize(in);
        case DI_OP_HEAD_NORM:
        case DI_OP_ROPE:
        case DI_OP_KV_WRITE:
        case DI_OP_ROPE_KV:
            return heads(in);
        case DI_OP_ATTENTION:
            return attention(in, plan);
        case DI_OP_ROUTE:
            return route(in);
        case DI_OP_EXPERT_LINEAR:
        case DI_OP_EXPERT_SUM:
            return experts(in);
        case DI_OP_GATHER_ROWS:
            return gather(in);
        case DI_OP_HIDDEN:
            return step_.out_hidden ? copy_rows(view(in.in[0]), in.i[0], step_.out_hidden) : DI_OK;
        case DI_OP_SAMPLE:
            return sample(in);
        default:
            return pointwise(in);
    }
}

// ---- instructions ----

int Launcher::embed(const di_instr& in) {
    const Weight& w = program_.weights_[static_cast<size_t>(in.weight[0])];
    EmbedArgs e{};
    e.out = view(in.out[0]);
    e.tokens = in_block<int32_t>(layout_.tokens);
    e.last_token = reinterpret_cast<const int32_t*>(program_.last_tokens_.at());
    e.rows = rows_of(in.out[0]);
    e.vocab = w.desc.n;
    e.hidden = w.desc.k;
    e.scale = in.f[0];
    if (step_.n_external > 0) {
        e.n_external = step_.n_external;
        e.external_count = in_lists<int32_t>(program_.external_count_at_);
        e.external_row = in_lists<int32_t>(program_.external_row_at_);
        e.external = in_lists<float>(program_.external_at_);
    }
    if (w.is_quantized()) {
        EmbedCodesArgs args{e, w.codes()};
        return launch(launch_embed_codes(args), args);
    }
    e.table = reinterpret_cast<const void*>(w.data);
    e.table_stride = w.k_padded;
    e.table_dtype = w.desc.dtype;
    return launch(launch_embed(e), e);
}

int Launcher::rope_table(const di_instr& in) {
    RopeTableArgs args{};
    args.out = view(in.out[0]);
    args.inv_freq = vector(in.weight[0]);
    args.long_inv_freq = vector(in.weight[1]);
    args.positions = in_block<int32_t>(layout_.positions);
    args.history = in_block<int32_t>(layout_.history);
    args.prompt_len = in_block<int32_t>(layout_.prompt_len);
    args.rows = rows_of(in.out[0]);
    args.position_rows = size_.position_rows;
    args.position_stride = size_.T;
    args.kind = in.i[0];
    args.half = in.i[1];
    args.original = in.i[2];
    for (int i = 0; i < 3; ++i) args.sections[i] = in.i[3 + i];
    args.interleaved = in.i[6];
    args.logn = in.i[7];
    args.attention = in.f[0];
    args.scaling = in.f[1];
    args.theta = in.f[2];
    return launch(launch_rope_table(args), args);
}

int Launcher::norm(const di_instr& in) {
    const bool is_layer = in.op == DI_OP_LAYER_NORM;
    NormArgs args{view(in.in[0]),
                  view(in.out[0]),
                  vector(in.weight[0]),
                  is_layer ? vector(in.weight[1]) : nullptr,
                  rows_of(in.out[0]),
                  in.i[0],
                  in.f[0]};
    return launch(launch_norm(args, is_layer), args);
}

int Launcher::linear(const di_instr& in) {
    const Weight& w = program_.weights_[static_cast<size_t>(in.weight[0])];
    LinearArgs args{};
    args.e = {view(in.out[0]), view(in.in[1]), vector(in.weight[1]), in.i[0]};
    args.x = view(in.in[0]);
    args.N = w.desc.n;
    args.rows = rows_of(in.out[0]);
    return product(w, args, args.x, view(in.in[2]));
}

// A product with numbers, or with the codes of a quantized weight.
int Launcher::product(const Weight& w, LinearArgs args, const View& planes, const View& grid) {
    const Chip& chip = program_.device_->chip;
    if (!w.is_quantized()) {
        args.w = reinterpret_cast<const void*>(w.data);
        args.w_stride = args.K = w.k_padded;
        args.w_dtype = w.desc.dtype;
        bool done = false;
        if (program_.large_.takes(args))
            if (const int bad = large_product(args, &done)) return bad;
        return done ? DI_OK : launch(launch_linear(args, chip), args);
    }
    LinearCodesArgs codes{};
    codes.e = args.e;
    codes.experts = args.experts;
    codes.w = w.codes();
    codes.planes = static_cast<const int8_t*>(planes.data);
    codes.planes_stride = planes.stride;
    codes.grid = static_cast<const float*>(grid.data);
    codes.grid_stride = grid.stride;
    codes.n_planes = planes.cols / w.k_padded;
    codes.rows = args.rows;
    return launch(launch_linear_codes(codes, chip), codes);
}

// By cuBLASLt, in pieces of rows that fit the memory in between. `done` stays false, and the output as it was, where it
// refuses.
int Launcher::large_product(const LinearArgs& args, bool* done) {
    LargeProducts& large = program_.large_;
    const LargeShape shape(args);
    const int rows = args.rows.most, at_once = large.rows_at_once(shape, rows), last = (rows - 1) / at_once * at_once;
    for (const LargePiece& piece : {LargePiece{0, std::min(at_once, rows)}, LargePiece{last, rows - last}})
        for (const BlasProduct& p : large.products(args, shape, piece))
            if (!large.knows(p)) return DI_OK;
    for (int first = 0; first < rows; first += at_once) {
        const LargePiece piece{first, std::min(at_once, rows - first)};
        if (shape.split) {
            LinearHalvesArgs halves = large.halves(args, shape, piece);
            if (const int bad = launch(launch_linear_halves(halves), halves)) return bad;
        }
        for (const BlasProduct& p : large.products(args, shape, piece)) {
            if (large.run(p, program_.stream_)) {
                *done = true;
            } else {
                return *done ? why_.fail(DI_EDEAD, "cuBLASLt fails within a product") : DI_OK;
            }
        }
        if (shape.direct) continue;
        LinearFinishArgs finish = large.finish(args, shape, piece);
        if (const int bad = launch(launch_linear_finish(finish), finish)) return bad;
    }
    return DI_OK;
}

int Launcher::route(const di_instr& in) {
    grouped_slot_ = -1;
    RouteArgs args{view(in.in[0]), view(in.out[0]), in.i[0], in.i[1], in.i[2], in.f[0], rows_of(in.out[0])};
    return launch(launch_route(args), args);
}

// expert_linear writes its products; expert_sum puts them aside in fp32 and then adds those of a token.
int Launcher::experts(const di_instr& in) {
    const bool sums = in.op == DI_OP_EXPERT_SUM;
    const Weight& w = program_.weights_[static_cast<size_t>(in.weight[0])];
    const View x = view(in.in[0]), routing = view(in.in[1]), out = view(in.out[0]);
    const Rows tokens{in_block<int32_t>(StepLayout::kCountT), size_.T};
    const int chosen = program_.desc_.experts_per_token;
    LinearArgs args{};
    args.e.out = sums ? View{reinterpret_cast<void*>(program_.experts_.at()), out.cols, out.cols, F32} : out;
    args.e.act = sums ? 0 : in.i[1];
    args.x = x;
    args.N = w.desc.n / in.i[0];
    args.rows = tokens;
    args.experts.chosen = chosen;
    args.experts.experts = in.i[0];
    args.experts.N = args.N;
    args.experts.share = sums ? 1 : chosen;
    args.experts.routing = static_cast<const float*>(routing.data);
    args.experts.routing_stride = routing.stride;
    const int tile = expert_tile_rows(size_.T, w.is_quantized() ? x.cols / w.k_padded : 0);
    if (const int bad = group(in, tile, &args.experts)) return bad;
    if (const int bad = product(w, args, x, view(in.in[sums ? 3 : 2]))) return bad;
    if (!sums) return DI_OK;
    ExpertSumArgs sum{args.e.out, view(in.in[2]), out, args.experts.routing, routing.stride, chosen, tokens};
    return launch(launch_expert_sum(sum), sum);
}

// Sorts the rows of a step by expert, once for all products that want the same tiles. 0 rows a tile: nothing is sorted.
int Launcher::group(const di_instr& in, int tile_rows, Experts* experts) {
    if (tile_rows == 0) return DI_OK;
    const DevicePointer list = program_.experts_.at() + static_cast<DevicePointer>(program_.expert_sum_bytes_);
    const int64_t rows = int64_t{program_.desc_.max_tokens} * program_.desc_.experts_per_token;
    const DevicePointer count = list + static_cast<DevicePointer>(round_up(4 * rows, 256)), tiles = count + 256;
    experts->list = reinterpret_cast<const int32_t*>(list);
    experts->n_tiles = reinterpret_cast<const int32_t*>(count);
    experts->tiles = reinterpret_cast<const ExpertTile*>(tiles);
    if (grouped_slot_ == in.in[1] && grouped_tile_ == tile_rows) return DI_OK;
    grouped_slot_ = in.in[1];
    grouped_tile_ = tile_rows;
    GroupArgs args{};
    args.routing = experts->routing;
    args.routing_stride = experts->routing_stride;
    args.experts = experts->experts;
    args.chosen = experts->chosen;
    args.tile_rows = tile_rows;
    args.list = reinterpret_cast<int32_t*>(list);
    args.tiles = reinterpret_cast<ExpertTile*>(tiles);
    args.n_tiles = reinterpret_cast<int32_t*>(count);
    args.rows = {in_block<int32_t>(StepLayout::kCountT), size_.T};
    return launch(launch_expert_group(args), args);
}

int Launcher::quantize(const di_instr& in) {
    const View planes = view(in.out[0]), grid = view(in.out[1]);
    QuantizeArgs args{};
    args.x = view(in.in[0]);
    args.planes = static_cast<int8_t*>(planes.data);
    args.planes_stride = planes.stride;
    args.grid = static_cast<float*>(grid.data);
    args.grid_stride = grid.stride;
    args.grid_cols = grid.cols;
    args.order = reinterpret_cast<const int32_t*>(vector(in.weight[0]));
    args.K = in.i[0];
    args.group = in.i[1];
    args.group_padded = static_cast<int32_t>(round_up(in.i[1], kQuantCell));
    args.n_planes = in.i[2];
    args.head = in.i[3];
    args.padded_head = in.i[4];
    args.rows = rows_of(in.out[0]);
    return launch(launch_quantize(args), args);
}

int Launcher::heads(const di_instr& in) {
    HeadsArgs args{};
    args.rows = rows_of(in.in[0]);
    args.kv = program_.pool_;
    args.kv_slot = in_block<int32_t>(layout_.kv_slot);
    switch (in.op) {
        case DI_OP_ROPE_KV:
            args.q = view(in.out[0]);
            args.k = view(in.in[1]);
            args.v = view(in.in[2]);
            args.table = view(in.in[3]);
            args.q_norm = vector(in.weight[0]);
            args.k_norm = vector(in.weight[1]);
            args.layer = in.i[0];
            args.Hq = in.i[1];
            args.Hkv = in.i[2];
            args.D = in.i[3];
            args.rotary = in.i[4];
            args.interleaved = in.i[5];
            break;
        case DI_OP_KV_WRITE:
            args.k = view(in.in[0]);
            args.v = view(in.in[1]);
            args.layer = in.i[0];
            args.Hkv = in.i[1];
            args.D = in.i[2];
            break;
        case DI_OP_HEAD_NORM:
            args.q = view(in.out[0]);
            args.q_norm = vector(in.weight[0]);
            args.Hq = in.i[0];
            args.D = in.i[1];
            break;
        default:
            args.q = view(in.out[0]);
            args.table = view(in.in[1]);
            args.Hq = in.i[0];
            args.D = in.i[1];
            args.rotary = in.i[2];
            args.interleaved = in.i[3];
            break;
    }
    args.eps = in.f[0];
    args.head = static_cast<int32_t>(round_up(args.D, kCell));
    if (in.op != DI_OP_KV_WRITE && in.out[0] != in.in[0]) {
        PointwiseArgs copy{view(in.in[0]), View{}, view(in.out[0]), POINT_CAST, 0, 0, args.rows};
        if (const int bad = launch(launch_pointwise(copy), copy)) return bad;
    }
    return launch(launch_heads(args), args);
}

int Launcher::attention(const di_instr& in, int plan) {
    const auto p = static_cast<size_t>(plan);
    AttentionArgs args{};
    args.q = view(in.in[0]);
    args.out = view(in.out[0]);
    args.kv = program_.pool_;
    args.layer = in.i[0];
    args.Hq = in.i[1];
    args.Hkv = in.i[2];
    args.D = in.i[3];
    args.window = in.i[4];
    args.scale = in.f[0];
    args.softcap = in.f[1];
    args.alibi = vector(in.weight[0]);
    args.sinks = vector(in.weight[1]);
    args.q_offset = in_block<int32_t>(layout_.q_offset);
    args.kv_len = in_block<int32_t>(layout_.kv_len);
    args.bidirectional = in_block<int32_t>(layout_.bidirectional);
    args.block_table = in_block<int32_t>(layout_.table);
    args.max_blocks = size_.table_width;
    args.work = in_block<AttentionWork>(layout_.works[p]);
    args.works = {in_block<int32_t>(StepLayout::count_works(p)), size_.works[p]};
    args.merge = in_block<AttentionMerge>(layout_.merges[p]);
    args.merges = {in_block<int32_t>(StepLayout::count_merges(p)), size_.merges[p]};
    args.part_sum = reinterpret_cast<float*>(program_.parts_.at());
    args.part_max = args.part_sum + program_.part_rows_ * args.Hkv * args.kv.head_size;
    args.tile_rows = program_.tile_rows_;
    if (const int bad = launch(launch_attention(args, program_.device_->chip), args)) return bad;
    return launch(launch_attention_merge(args), args);
}

int Launcher::pointwise(const di_instr& in) {
    static constexpr PointwiseOp kOps[] = {POINT_ACT, POINT_MUL, POINT_ADD, POINT_SCALE, POINT_SOFTCAP, POINT_CAST};
    const bool gates = in.op == DI_OP_GATE_ROWS, has_two = gates || in.op == DI_OP_MUL || in.op == DI_OP_ADD;
    PointwiseArgs args{};
    args.a = view(in.in[0]);
    args.b = has_two ? view(in.in[1]) : View{};
    args.out = view(in.out[0]);
    args.op = gates ? POINT_GATE : kOps[in.op - DI_OP_ACT];
    args.act = in.i[0];
    args.factor = in.f[0];
    args.rows = rows_of(in.out[0]);
    return launch(launch_pointwise(args), args);
}

int Launcher::gather(const di_instr& in) {
    GatherArgs args{view(in.in[0]), view(in.out[0]), in_block<int32_t>(layout_.logit_row) + tile_.first, tile_.rows};
    return launch(launch_gather_rows(args), args);
}

int Launcher::sample(const di_instr& in) {
    const auto result = [&](size_t at) { return reinterpret_cast<int32_t*>(program_.results_.at() + at); };
    const int first = tile_.first, most = program_.desc_.max_logprobs;
    SampleArgs args{};
    args.logits = view(in.in[0]);
    if (step_.out_logits)
        if (const int bad = copy_rows(args.logits, program_.vocab_, step_.out_logits)) return bad;
    args.V = in.i[0];
    args.samples = in_block<Sample>(layout_.samples) + first;
    args.work_stride = round_up(program_.vocab_, kCell);
    args.row_work = reinterpret_cast<float*>(program_.sampling_.at());
    args.counts = reinterpret_cast<uint32_t*>(args.row_work + program_.desc_.tail_rows * args.work_stride);
    args.last_token = reinterpret_cast<int32_t*>(program_.last_tokens_.at());
    args.out_token = result(program_.result_at(0)) + first;
    args.out_status = result(program_.result_at(1)) + first;
    args.out_logprob = reinterpret_cast<float*>(result(program_.result_at(2))) + first;
    args.out_rank = result(program_.result_at(3)) + first;
    args.out_top_ids = result(program_.tops_at(0)) + int64_t{first} * most;
    args.out_top_logprobs = reinterpret_cast<float*>(result(program_.tops_at(1))) + int64_t{first} * most;
    args.max_top = most;
    args.rows = tile_.rows;
    return launch(launch_sample(args), args);
}

// The tile's logits or hidden states to the host, at once: who asks for them does not ask for speed.
int Launcher::copy_rows(const View& from, int columns, float* to) {
    const auto rows = static_cast<size_t>(tile_.rows.most), stride = static_cast<size_t>(from.stride);
    const auto n = static_cast<size_t>(columns);
    std::vector<float> values(rows * stride);
    const Driver& driver = program_.driver();
    // The last row ends with its columns: the range of a view need not reach to the end of its parent's last row.
    const size_t bytes = ((rows - 1) * stride + static_cast<size_t>(from.cols)) * sizeof(float);
    if (const int bad =
            driver.check(driver.cuMemcpyDtoHAsync_v2(values.data(), reinterpret_cast<DevicePointer>(from.data), bytes,
                                                     program_.stream_),
                         why_, "copying rows"))
        return bad;
    if (const int bad = driver.check(driver.cuStreamSynchronize(program_.stream_), why_, "copying rows")) return bad;
    for (size_t r = 0; r < rows; ++r)
        std::memcpy(to + (static_cast<size_t>(tile_.first) + r) * n, values.data() + r * stride, n * sizeof(float));
    return DI_OK;
}

}  // namespace di
