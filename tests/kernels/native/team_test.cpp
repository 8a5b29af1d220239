// Stress tests of the thread team, its barrier and its turns. Data that threads exchange is plain memory, so that the
// thread sanitizer judges the ordering; a lost wake-up shows as a hang, which the caller of this program ends.
#include <atomic>
#include <csignal>
#include <initializer_list>
#include <memory>
#include <vector>

#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "fp_mode.h"
#include "hand.h"
#include "os.h"
#include "team.h"

using namespace di;

namespace {

#if defined(__SANITIZE_THREAD__) || defined(__aarch64__)
constexpr int kScale = 1;  // instrumented or emulated
#else
constexpr int kScale = 10;
#endif

constexpr int kTeamSizes[] = {1, 2, 3, 5, 8, 16, 17, 40};

using TeamPtr = std::unique_ptr<Team>;

TeamPtr make_team(int threads) {
    char why[200] = "";
    TeamPtr team(Team::create(threads, why, sizeof why));
    if (team == nullptr) fprintf(stderr, "%s\n", why);
    CHECK(team != nullptr && team->threads() == threads);
    return team;
}

void wait_until_parked(const Team& team) {
    while (team.parked() != team.threads() - 1) usleep(200);
}

// ---- Barrier ---------------------------------------------------------------------------------------------------

struct Exchange {
    Team* team;
    int rounds;
    std::vector<int> slots;  // neighbours share cache lines on purpose
};

// Everybody writes its slot, and after a barrier reads all of them.
void exchange(void* ctx, int thread, int threads) {
    Exchange& x = *static_cast<Exchange*>(ctx);
    for (int round = 0; round < x.rounds; round++) {
        x.slots[static_cast<size_t>(thread)] = round * threads + thread;
        x.team->barrier(thread);
        for (int t = 0; t < threads; t++) CHECK(x.slots[static_cast<size_t>(t)] == round * threads + t);
        x.team->barrier(thread);
    }
}

void barriers() {
    for (const int threads : kTeamSizes) {
        const TeamPtr team = make_team(threads);
        const int rounds = (threads <= 3 ? 1000 : 2000 / threads) * kScale / 2;
        Exchange x{team.get(), rounds, std::vector<int>(static_cast<size_t>(threads))};
        CHECK(team->run(exchange, &x));
        CHECK(team->run(exchange, &x));
    }
}

// One thread is late at every barrier, so that all others fall asleep there.
void late_thread(void* ctx, int thread, int threads) {
    Exchange& x = *static_cast<Exchange*>(ctx);
    for (int round = 0; round < x.rounds; round++) {
        if (round % threads == thread) usleep(2000);
        x.slots[static_cast<size_t>(thread)] = round;
        x.team->barrier(thread);
        for (const int slot : x.slots) CHECK(slot == round);
        x.team->barrier(thread);
    }
}

void sleepy_barriers() {
    for (const int threads : {2, 5, 17}) {
        const TeamPtr team = make_team(threads);
        Exchange x{team.get(), 2 * threads, std::vector<int>(static_cast<size_t>(threads))};
        CHECK(team->run(late_thread, &x));
    }
}

// ---- Runs ------------------------------------------------------------------------------------------------------

struct Calls {
    std::vector<int> of_thread;
    static void count(void* ctx, int thread, int threads) {
        Calls& calls = *static_cast<Calls*>(ctx);
        CHECK(threads == static_cast<int>(calls.of_thread.size()));
        calls.of_thread[static_cast<size_t>(thread)]++;
    }
};

void runs() {
    for (const int threads : kTeamSizes) {
        const TeamPtr team = make_team(threads);
        Calls calls{std::vector<int>(static_cast<size_t>(threads))};
        const int total = (threads <= 3 ? 1000 : 500 / threads) * kScale;
        for (int run = 1; run <= total; run++) {
            CHECK(team->run(Calls::count, &calls));
            for (const int n : calls.of_thread) CHECK(n == run);
        }
    }
}

void wake_after_park() {
    for (const int threads : {2, 3, 8, 17}) {
        const TeamPtr team = make_team(threads);
        Calls calls{std::vector<int>(static_cast<size_t>(threads))};
        for (int run = 1; run <= 20; run++) {
            if (run % 4 != 0) wait_until_parked(*team);
            if (run % 4 == 1) usleep(static_cast<useconds_t>(50 * run));
            CHECK(team->run(Calls::count, &calls));
            for (const int n : calls.of_thread) CHECK(n == run);
        }
    }
}

void do_nothing(void*, int, int) {}

struct Chunks {
    Counter counter;
    std::vector<int> taken;
};

void take_chunks(void* ctx, int, int) {
    Chunks& c = *static_cast<Chunks*>(ctx);
    const int64_t n = static_cast<int64_t>(c.taken.size());
    for (int64_t i = c.counter.take(3); i < n; i = c.counter.take(3)) {
        for (int64_t j = i; j < n && j < i + 3; j++) c.taken[static_cast<size_t>(j)]++;
    }
}

void chunks() {
    const TeamPtr team = make_team(5);
    Chunks c;
    c.taken.resize(10'000);
    for (int run = 1; run <= 5; run++) {
        c.counter.reset();
        CHECK(team->run(take_chunks, &c));
        for (const int n : c.taken) CHECK(n == run);
    }
}

// ---- Life ------------------------------------------------------------------------------------------------------

// ---- Hands -----------------------------------------------------------------------------------------------------

struct Deal {
    Team* team;
    int rounds, things;  // things of a share
    int late;            // a thread that comes when all others are done, or -1
    std::vector<Hand> hands;
    std::vector<int> taken;  // how often each thing was; its takers write to it without a lock

    int& at(int owner, int thing) { return taken[static_cast<size_t>(owner * things + thing)]; }
};

// Everybody does its own share and then what is left of the others'. All is done once, in every round.
void take_from_hands(void* ctx, int thread, int threads) {
    Deal& deal = *static_cast<Deal*>(ctx);
    for (int round = 1; round <= deal.rounds; round++) {
        if (thread == deal.late) deal.team->barrier(thread);
        for (int i = 0; i < threads; i++) {
            const int owner = (thread + i) % threads, least = round % 4;
            const End end = i == 0 ? End::Front : End::Back;
            Hand& hand = deal.hands[static_cast<size_t>(owner)];
            for (Range r; hand.take(static_cast<uint64_t>(round) << 20, deal.things, least, end, &r);) {
                CHECK(0 <= r.begin && r.begin < r.end && r.end <= deal.things && thread != deal.late);
                for (int t = r.begin; t < r.end; t++) deal.at(owner, t)++;
            }
        }
        if (deal.late >= 0 && thread != deal.late) deal.team->barrier(thread);
        deal.team->barrier(thread);
        for (int t = 0; t < deal.things; t++) CHECK(deal.at(thread, t) == round);
        deal.team->barrier(thread);
    }
}

void hands() {
    for (const int threads : {1, 2, 3, 8}) {
        for (const int things : {0, 1, 2, 37, 300}) {
            for (const int late : {-1, 0}) {
                if (threads == 1 && late == 0) continue;
                const TeamPtr team = make_team(threads);
                const auto n = static_cast<size_t>(threads);
                Deal deal{team.get(), 20 * kScale,          things,
                          late,       std::vector<Hand>(n), std::vector<int>(n * static_cast<size_t>(things))};
                CHECK(team->run(take_from_hands, &deal));
            }
        }
    }
}

void create_and_delete() {
    for (int i = 0; i < 10 * kScale; i++) {
        const TeamPtr team = make_team(1 + i % 5);
        if (i % 3 == 1) wait_until_parked(*team);
        Calls calls{std::vector<int>(static_cast<size_t>(team->threads()))};
        if (i % 2 == 1) CHECK(team->run(Calls::count, &calls));
    }
}

void bad_sizes() {
    for (const int threads : {0, -1, kMaxThreads + 1}) {
        char why[200] = "";
        CHECK(Team::create(threads, why, sizeof why) == nullptr);
        CHECK(strstr(why, "1 to 1024") != nullptr);
        CHECK(Team::create(threads, nullptr, 0) == nullptr);
    }
}

long field_of(const char* file, const char* format) {
    FILE* stream = fopen(file, "r");
    long value = 0;
    CHECK(stream != nullptr);
    for (char line[256]; value == 0 && fgets(line, sizeof line, stream) != nullptr;) sscanf(line, format, &value);
    fclose(stream);
    return value;
}

// Some workers start and then the system refuses: no team, a reason, no worker left over, and the next try works.
void refused_threads() {
    CHECK(field_of("/proc/self/statm", "%ld") > 0);
#if !defined(__SANITIZE_THREAD__) && !defined(__aarch64__)
    rlimit before, tight;
    CHECK(getrlimit(RLIMIT_AS, &before) == 0);
    tight = before;
    tight.rlim_cur = static_cast<rlim_t>(field_of("/proc/self/statm", "%ld") * sysconf(_SC_PAGESIZE) + (16 << 20));
    CHECK(setrlimit(RLIMIT_AS, &tight) == 0);
    char why[200] = "";
    Team* team = Team::create(500, why, sizeof why);
    CHECK(setrlimit(RLIMIT_AS, &before) == 0);
    CHECK(team == nullptr && strstr(why, "could not be started") != nullptr);
    while (field_of("/proc/self/status", "Threads: %ld") != 1) usleep(200);
#endif
    CHECK(make_team(4)->run(do_nothing, nullptr));
}

struct Nested {
    Team* team;
    char why[200];
};

void run_again(void* ctx, int thread, int) {
    Nested& nested = *static_cast<Nested*>(ctx);
    if (thread == 0) CHECK(!nested.team->run(run_again, ctx, nested.why, sizeof nested.why));
}

void run_inside_run() {
    for (const int threads : {1, 3}) {
        const TeamPtr team = make_team(threads);
        Nested nested{team.get(), ""};
        CHECK(team->run(run_again, &nested));
        CHECK(strstr(nested.why, "already running") != nullptr);
        CHECK(team->run(run_again, &nested));
    }
}

void check_signals(void*, int thread, int) {
    sigset_t blocked;
    CHECK(pthread_sigmask(SIG_SETMASK, nullptr, &blocked) == 0);
    for (const int signal : {SIGINT, SIGTERM, SIGALRM, SIGCHLD, SIGUSR1}) {
        CHECK(sigismember(&blocked, signal) == (thread > 0));
    }
    CHECK(sigismember(&blocked, SIGSEGV) == 0);
}

void signals_stay_with_the_host() { CHECK(make_team(3)->run(check_signals, nullptr)); }

// ---- Floating-point mode ---------------------------------------------------------------------------------------

#if defined(__x86_64__)
constexpr uint64_t kTowardsZero = 0x6000;
#else
constexpr uint64_t kTowardsZero = 0xC00000;
#endif

void check_kernel_mode(void*, int, int) {
    volatile float small = 1e-38f, tenth = 0.1f, subnormal = 1e-40f, large = 1e10f;
    CHECK((fp_mode() & ~uint64_t{0x3f}) == kKernelFpMode);  // but for sticky flags
    CHECK(small * tenth == 0.0f);
    CHECK(subnormal * large == 0.0f);
}

void floating_point_mode() {
    const uint64_t usual = fp_mode(), odd = usual ^ kTowardsZero;
    for (const int threads : {1, 2, 4}) {
        set_fp_mode(odd);  // a new thread inherits it from its creator
        const TeamPtr team = make_team(threads);
        for (int run = 0; run < 3; run++) {
            CHECK(team->run(check_kernel_mode, nullptr));
            CHECK(fp_mode() == odd);
        }
        set_fp_mode(usual);
        volatile float small = 1e-38f, tenth = 0.1f;
        CHECK(small * tenth > 0.0f);
    }
}

// ---- Several teams ---------------------------------------------------------------------------------------------

struct Stage {
    std::atomic<bool> taken{false};
    int turns = 0;  // plain memory, guarded by the turn alone
};

struct Engine {
    int rounds;
    int turn;  // threads asked for, or 0 to run without a turn
    Stage* stage;
    Thread thread;

    static void* main(void* self) {
        Engine& engine = *static_cast<Engine*>(self);
        const TeamPtr team = make_team(2);
        Calls calls{std::vector<int>(2)};
        for (int round = 1; round <= engine.rounds; round++) {
            std::unique_ptr<TurnGuard> turn(engine.turn > 0 ? new TurnGuard(engine.turn) : nullptr);
            if (turn != nullptr) {
                CHECK(!engine.stage->taken.exchange(true, std::memory_order_relaxed));
                engine.stage->turns++;
                if (round % 8 == 0) usleep(200);  // let others come and wait
            }
            CHECK(team->run(Calls::count, &calls));
            CHECK(calls.of_thread[1] == round);
            if (turn != nullptr) engine.stage->taken.store(false, std::memory_order_relaxed);
        }
        return nullptr;
    }
};

int run_engines(int engines, int rounds, int turn) {
    Stage stage;
    std::vector<Engine> all(static_cast<size_t>(engines), Engine{rounds, turn, &stage, {}});
    for (Engine& engine : all) CHECK(os_thread_start(&engine.thread, Engine::main, &engine) == 0);
    for (Engine& engine : all) os_thread_join(engine.thread);
    return stage.turns;
}

void two_teams() { run_engines(2, 100 * kScale, 0); }

void turns() {
    CHECK(run_engines(3, 30 * kScale, os_usable_cpus()) == 90 * kScale);
    CHECK(run_engines(2, 10 * kScale, 10 * os_usable_cpus()) == 20 * kScale);  // larger than the machine: alone
}

// Teams that fit side by side do not wait for each other: the second guard would hang here.
void turns_side_by_side() {
    if (os_usable_cpus() < 2) return;
    const TurnGuard one(1), other(os_usable_cpus() - 1);
}

// ---- Fork ------------------------------------------------------------------------------------------------------

int in_child(Team* parents_team, TurnGuard* parents_turn) {
    char why[200] = "";
    Calls calls{std::vector<int>(3)};
    if (parents_team->run(Calls::count, &calls, why, sizeof why)) return 1;
    if (strstr(why, "after fork()") == nullptr || calls.of_thread[0] != 0) return 2;
    delete parents_team;
    delete parents_turn;
#if defined(__SANITIZE_THREAD__)
    return 0;  // which cannot follow threads that start after a fork
#endif
    for (int i = 0; i < 2; i++) {
        const TurnGuard turn(os_usable_cpus());  // hangs if the parent's turn is held here, or was given back here
        const TeamPtr team = make_team(3);
        if (!team->run(Calls::count, &calls) || calls.of_thread[2] != i + 1) return 3;
    }
    return 0;
}

void fork_leaves_the_team_behind() {
    TeamPtr team = make_team(3);
    Calls calls{std::vector<int>(3)};
    for (int i = 0; i < 4; i++) {
        CHECK(team->run(Calls::count, &calls));
        if (i % 2 == 1) wait_until_parked(*team);
        auto turn = std::make_unique<TurnGuard>(10 * os_usable_cpus());
        const pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0) _exit(in_child(team.release(), turn.release()));
        int status = -1;
        CHECK(waitpid(child, &status, 0) == child);
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
    CHECK(team->run(Calls::count, &calls));
    CHECK(calls.of_thread[2] == 5);
}

constexpr Case kCases[] = {
    {"barriers", barriers},
    {"sleepy_barriers", sleepy_barriers},
    {"runs", runs},
    {"wake_after_park", wake_after_park},
    {"chunks", chunks},
    {"hands", hands},
    {"create_and_delete", create_and_delete},
    {"bad_sizes", bad_sizes},
    {"refused_threads", refused_threads},
    {"run_inside_run", run_inside_run},
    {"signals_stay_with_the_host", signals_stay_with_the_host},
    {"floating_point_mode", floating_point_mode},
    {"two_teams", two_teams},
    {"turns", turns},
    {"turns_side_by_side", turns_side_by_side},
    {"fork_leaves_the_team_behind", fork_leaves_the_team_behind},
};

}  // namespace

int main(int argc, char** argv) { return run_case(kCases, argc == 2 ? argv[1] : ""); }
