// One step's instructions as kernel launches on the program's stream.
#pragma once
#include "program.h"

namespace di {

class Launcher {
  public:
    Launcher(Program& program, const di_step& step, const StepSize& size, Why why)
        : program_(program), step_(step), size_(size), layout_(size), why_(why) {}

    int clear_blocks();
    int body();
    // Tiles of logit rows. A captured tail has one tile, whose rows are read on the GPU.
    int tail(bool captured);

  private:
    // The rows of a tile of the tail.
    struct Tile {
        int first;
        Rows rows;
    };

    int instr(const di_instr& in, int at);
    int timed(const di_instr& in, int at);
    int embed(const di_instr& in);
    int rope_table(const di_instr& in);
    int norm(const di_instr& in);
    int linear(const di_instr& in);
    int quantize(const di_instr& in);
    int heads(const di_instr& in);
    int attention(const di_instr& in, int plan);
    int pointwise(const di_instr& in);
    int gather(const di_instr& in);
    int route(const di_instr& in);
    int experts(const di_instr& in);
    int product(const Weight& w, LinearArgs args, const View& planes, const View& grid);
    int large_product(const LinearArgs& args, bool* done);
    int group(const di_instr& in, int tile_rows, Experts* experts);
    int sample(const di_instr& in);
    bool wants_no_tokens() const;
    int copy_rows(const View& rows, int columns, float* to);

    template <class Args>
    int launch(const Launch& how, Args& args);

    View view(int slot) const;
    Rows rows_of(int slot) const;
    const float* vector(int weight) const;
    template <class T>
    const T* in_block(size_t at) const {
        return reinterpret_cast<const T*>(program_.block_.at() + at);
    }
    template <class T>
    const T* in_lists(size_t at) const {
        return reinterpret_cast<const T*>(program_.lists_.at() + at);
    }
    const di_slot& slot(int id) const { return program_.slots_[static_cast<size_t>(id)]; }

    Program& program_;
    const di_step& step_;
    const StepSize& size_;
    const StepLayout layout_;
    const Why why_;
    Tile tile_{};
    int grouped_slot_ = -1, grouped_tile_ = 0;  // the routing that the rows are sorted by, and its tiles' height
};

}  // namespace di
