// Host time of objects: allocate and free one, steady, of any size among 100,000 holes, and on many threads.
// No GPU is needed.
//
//     c++ -O2 -std=c++17 -pthread objects.cpp -Iinclude -Ltarget/release -lhbmalloc -o objects && ./objects

#include <hbmalloc.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <random>
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

static double nanoseconds(Clock::time_point begin) {
    return std::chrono::duration<double, std::nano>(Clock::now() - begin).count();
}

struct Pool {
    hbm_slab_t *slab = nullptr;
    hbm_objects_t *objects = nullptr;
    explicit Pool(std::uint64_t bytes) {
        hbm_slab_desc_t wanted{};
        wanted.struct_size = sizeof wanted;
        wanted.bytes = bytes;
        wanted.initial_bytes = 2 << 20;
        wanted.part_bytes = bytes;
        wanted.flags = HBM_SLAB_PAGEABLE;
        CHECK(hbm_slab_open(&wanted, &slab));
        CHECK(hbm_slab_wait(slab, bytes, -1));
        CHECK(hbm_objects_open(slab, 4096, &objects));
    }
    ~Pool() {
        hbm_objects_close(objects);
        hbm_slab_close(slab);
    }
    std::uint64_t allocate(std::size_t bytes) {
        std::uint64_t handle;
        CHECK(hbm_objects_allocate(objects, bytes, 1, 0, &handle, nullptr, nullptr));
        return handle;
    }
    void free(std::uint64_t handle) { CHECK(hbm_objects_free(objects, &handle, 1)); }
};

static double steady(Pool &pool, std::size_t bytes, int count) {
    pool.free(pool.allocate(bytes));
    auto begin = Clock::now();
    for (int i = 0; i < count; i++) pool.free(pool.allocate(bytes));
    return nanoseconds(begin) / count;
}

// Every other of 200,000 objects of random sizes is freed; then objects of random sizes come and go.
static double holes(Pool &pool, int count) {
    std::mt19937_64 random(7);
    auto size = [&] { return 4096 * (1 + random() % 8); };
    std::vector<std::uint64_t> live;
    for (int i = 0; i < 200000; i++) live.push_back(pool.allocate(size()));
    for (std::size_t i = 0; i < live.size(); i += 2) pool.free(live[i]);
    for (std::size_t i = 0; i < live.size() / 2; i++) live[i] = live[2 * i + 1];
    live.resize(live.size() / 2);
    std::vector<std::size_t> sizes(1 << 16);
    std::generate(sizes.begin(), sizes.end(), size);
    std::vector<std::uint32_t> places(1 << 16);
    std::generate(places.begin(), places.end(), [&] { return random() % live.size(); });
    auto begin = Clock::now();
    for (int i = 0; i < count; i++) {
        std::uint64_t &place = live[places[i & 0xffff]];
        pool.free(place);
        place = pool.allocate(sizes[i & 0xffff]);
    }
    double each = nanoseconds(begin) / count;
    CHECK(hbm_objects_check(pool.objects));
    CHECK(hbm_objects_free(pool.objects, live.data(), live.size()));
    return each;
}

static double batches(Pool &pool, std::size_t bytes, std::size_t many, int count) {
    std::vector<std::uint64_t> handles(many), addresses(many);
    auto begin = Clock::now();
    for (int i = 0; i < count; i++) {
        CHECK(hbm_objects_allocate(pool.objects, bytes, many, 0, handles.data(), addresses.data(), nullptr));
        CHECK(hbm_objects_free(pool.objects, handles.data(), many));
    }
    return nanoseconds(begin) / (count * double(many));
}

static double threads(Pool &pool, int many, int count) {
    std::atomic<int> ready{0};
    std::vector<std::thread> running;
    auto begin = Clock::now();
    for (int t = 0; t < many; t++)
        running.emplace_back([&, t] {
            ready++;
            while (ready < many) std::this_thread::yield();
            std::size_t bytes = 4096 * (1 + t % 4);
            for (int i = 0; i < count; i++) pool.free(pool.allocate(bytes));
        });
    for (auto &thread : running) thread.join();
    return double(many) * count / nanoseconds(begin) * 1e3;
}

int main() {
    Pool pool(std::uint64_t{8} << 30);
    for (int round = 0; round < 3; round++) {
        std::printf("one object, allocate and free: %.1f ns (16 KiB), %.1f ns (1 MiB)\n", steady(pool, 16 << 10, 5000000),
                    steady(pool, 1 << 20, 5000000));
        std::printf("any size from 4 to 32 KiB, 100,000 holes: %.1f ns\n", holes(pool, 3000000));
        std::printf("in batches of 256, an object: %.1f ns\n", batches(pool, 16 << 10, 256, 20000));
        for (int many : {1, 2, 4, 8, 16})
            if (many <= int(std::thread::hardware_concurrency()))
                std::printf("%2d threads: %.1f million pairs/s\n", many, threads(pool, many, 2000000));
    }
}
