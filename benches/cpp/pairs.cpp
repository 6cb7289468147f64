// What hbmalloc.hpp costs above the C interface: a steady pair, allocate and deallocate of one size on one stream, by
// both, from the pool and from an arena over it. Nanoseconds a pair: the least of the rounds, which take turns.
//
//   g++ -O2 -std=c++17 -Iinclude benches/cpp/pairs.cpp -o pairs -Ltarget/release -lhbmalloc
//   HBMALLOC_DRIVER=sim LD_LIBRARY_PATH=target/release ./pairs [rounds] [pairs a round]
//
// LD_LIBRARY_PATH must name a folder with libhbmalloc.so.0, as `make install` lays it out. Without HBMALLOC_DRIVER it
// runs on the GPU, with the same numbers: no pair calls the driver but to ask whether the stream captures, which
// `hbm_captures_told` does without.
#include <hbmalloc.hpp>

#include <chrono>
#include <cstdio>
#include <cstdlib>

namespace {

using hbmalloc::Allocator;

constexpr ssize_t BYTES = 4096;

int rounds = 50;
int pairs = 200000;

template <class Pair>
double once(Pair &&pair) {
    const auto begin = std::chrono::steady_clock::now();
    for (int i = 0; i < pairs; i++) {
        pair();
    }
    const std::chrono::duration<double, std::nano> took = std::chrono::steady_clock::now() - begin;
    return took.count() / pairs;
}

void end_if(bool is_wrong) {
    if (is_wrong) {
        std::fprintf(stderr, "%s\n", hbm_last_error());
        std::exit(1);
    }
}

template <class Handle>
void compare(const char *name, const Handle &allocator, bool is_sized) {
    hbm_allocator_t *native = allocator.native();
    void *stream = hbmalloc::StreamRef(allocator->stream()).raw();
    const auto by_c = [&] {
        void *block = nullptr;
        end_if(hbm_allocator_allocate(native, BYTES, 0, stream, &block) != HBM_OK);
        const int status = is_sized ? hbm_allocator_deallocate_sized(native, block, BYTES, stream)
                                    : hbm_allocator_deallocate(native, block, stream);
        end_if(status != HBM_OK);
    };
    const auto by_arrow = [&] { allocator->deallocate(allocator->allocate(BYTES), BYTES); };
    const auto by_handle = [&] { allocator.deallocate(allocator.allocate(BYTES), BYTES); };
    const auto by_buffer = [&] { hbmalloc::Buffer buffer(allocator, BYTES); };
    double least[4] = {1e9, 1e9, 1e9, 1e9};
    for (int round = 0; round < rounds; round++) {
        const double took[4] = {once(by_c), once(by_arrow), once(by_handle), once(by_buffer)};
        for (int i = 0; i < 4; i++) {
            least[i] = took[i] < least[i] ? took[i] : least[i];
        }
    }
    std::printf("%-12s %6.1f %18.1f %18.1f %10.1f %+18.1f\n", name, least[0], least[1], least[2], least[3],
                least[1] - least[0]);
}

}  // namespace

int main(int count, char **arguments) {
    rounds = count > 1 ? std::atoi(arguments[1]) : rounds;
    pairs = count > 2 ? std::atoi(arguments[2]) : pairs;
    end_if(hbm_captures_told(1) != HBM_OK);
    hbmalloc::Stream stream = hbmalloc::Stream::create();
    Allocator pool(stream, false);
    auto arena = pool.adapt<hbmalloc::Arena>();
    arena->deallocate(arena->allocate(BYTES), BYTES);
    arena->iter();
    std::printf("%-12s %6s %18s %18s %10s %18s\n", "ns", "C", "a->allocate", "a.allocate", "Buffer", "-> above C");
    compare("pool", pool, false);
    compare("arena", arena, true);
    // Where the compiler cannot see that it is one.
    compare<Allocator>("arena, any", arena, true);
}
