// Host time of a pair, an allocation and its deallocation: of an arena, of the pool, of both through a call that
// checks the size. No GPU is needed.
//
//     c++ -O2 -std=c++17 -pthread pairs.cpp -Iinclude -Ltarget/release -lhbmalloc -o pairs && ./pairs

#include <hbmalloc.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>

using Clock = std::chrono::steady_clock;

static void check(int status, const char *call) {
    if (status != 0) {
        std::fprintf(stderr, "%s: %s\n", call, hbm_last_error());
        std::exit(1);
    }
}
#define CHECK(call) check(call, #call)

static hbm_allocator_t *create(int kind, hbm_allocator_t *upstream = nullptr) {
    hbm_allocator_desc_t descriptor{};
    descriptor.struct_size = sizeof descriptor;
    descriptor.kind = kind;
    descriptor.upstream = upstream;
    hbm_allocator_t *made = nullptr;
    CHECK(hbm_allocator_create(&descriptor, &made));
    return made;
}

static void pairs(hbm_allocator_t *allocator, int count) {
    for (int i = 0; i < count; i++) {
        void *block = nullptr;
        if (hbm_allocator_allocate(allocator, 4096, 0, nullptr, &block) != 0) std::abort();
        if (hbm_allocator_deallocate(allocator, block, nullptr) != 0) std::abort();
    }
}

static void sized(hbm_allocator_t *allocator, int count) {
    for (int i = 0; i < count; i++) {
        void *block = nullptr;
        if (hbm_allocator_allocate(allocator, 4096, 0, nullptr, &block) != 0) std::abort();
        if (hbm_allocator_deallocate_sized(allocator, block, 4096, nullptr) != 0) std::abort();
    }
}

// 32 blocks come, and go in reverse.
static void deep(hbm_allocator_t *allocator, int count) {
    void *blocks[32];
    for (int i = 0; i < count; i += 32) {
        for (int j = 0; j < 32; j++) {
            if (hbm_allocator_allocate(allocator, 1 + 100 * j, 0, nullptr, &blocks[j]) != 0) std::abort();
        }
        for (int j = 31; j >= 0; j--) {
            if (hbm_allocator_deallocate(allocator, blocks[j], nullptr) != 0) std::abort();
        }
    }
}

using Loop = void (*)(hbm_allocator_t *, int);

// The least and the middle of some runs, in nanoseconds a pair.
static void measure(const char *what, hbm_allocator_t *allocator, Loop loop) {
    const int count = 50000, runs = 400;
    std::vector<double> times;
    loop(allocator, 100000);
    for (int run = 0; run < runs; run++) {
        auto begin = Clock::now();
        loop(allocator, count);
        times.push_back(std::chrono::duration<double, std::nano>(Clock::now() - begin).count() / count);
    }
    std::sort(times.begin(), times.end());
    std::printf("%-44s %7.2f ns (least %.2f)\n", what, times[runs / 2], times[0]);
}

int main() {
    setenv("HBMALLOC_DRIVER", "sim", 0);
    CHECK(hbm_captures_told(1));
    hbm_allocator_t *heap = create(HBM_KIND_HEAP), *pool = create(HBM_KIND_POOL);
    for (hbm_allocator_t *upstream : {heap, pool}) {
        hbm_allocator_t *arena = create(HBM_KIND_ARENA, upstream);
        deep(arena, 32);
        CHECK(hbm_arena_iter(arena, nullptr));
        const char *name = upstream == heap ? "heap" : "pool";
        char what[100];
        auto said = [&](const char *how) {
            std::snprintf(what, sizeof what, "arena over %s, %s", name, how);
            return what;
        };
        measure(said("one pair"), arena, pairs);
        measure(said("one pair, size checked"), arena, sized);
        measure(said("32 deep"), arena, deep);
        if (upstream == heap) {
            std::thread([&] { measure(said("on another thread"), arena, pairs); }).join();
            measure(said("on the first thread again"), arena, pairs);
            std::atomic<bool> stop{false};
            // Another thread's blocks stay below or above: each frees what it has at once, out of order or not.
            std::thread other([&] {
                hbm_arena_stats_t stats{};
                stats.struct_size = sizeof stats;
                while (!stop) CHECK(hbm_arena_stats(arena, &stats));
            });
            measure(said("while another reads statistics"), arena, pairs);
            stop = true;
            other.join();
            measure(said("alone again"), arena, pairs);
        }
        CHECK(hbm_allocator_destroy(arena));
    }
    measure("pool, one pair", pool, pairs);
    measure("pool, one pair, size checked", pool, sized);
    CHECK(hbm_allocator_destroy(pool));
    CHECK(hbm_allocator_destroy(heap));
}
