// The driver's own calls: cuMemAlloc, cuMemAllocAsync; cudaMallocAsync, where --library names a CUDA
// runtime; "none", which allocates nothing and so shows what the loops themselves cost; and "words",
// which does for a block the least that any allocator does that knows a block from none.
#include "loops.hpp"

#include <array>

namespace {

using bench::Driver;
using bench::Options;
using bench::Stream;
using bench::symbol;

class Plain {
public:
    static void open_device(const Options &) {}

    explicit Plain(const Options &options) {
        void *driver = bench::open_library(options.driver);
        alloc_ = symbol<decltype(alloc_)>(driver, "cuMemAlloc_v2");
        free_ = symbol<decltype(free_)>(driver, "cuMemFree_v2");
    }

    void *alloc(std::size_t bytes, Stream) {
        std::uint64_t block = 0;
        Driver::check(alloc_(&block, bytes), "cuMemAlloc");
        return reinterpret_cast<void *>(block);
    }

    void free(void *block, std::size_t, Stream) {
        Driver::check(free_(reinterpret_cast<std::uint64_t>(block)), "cuMemFree");
    }

private:
    int (*alloc_)(std::uint64_t *, std::size_t);
    int (*free_)(std::uint64_t);
};

// The driver's and the runtime's form have the same arguments.
class StreamOrdered {
public:
    static void open_device(const Options &) {}

    explicit StreamOrdered(const Options &options) {
        if (options.allocator == "cudaMallocAsync") {
            void *runtime = bench::open_library(options.library);
            Driver::check(symbol<int (*)(int)>(runtime, "cudaSetDevice")(0), "cudaSetDevice");
            alloc_ = symbol<decltype(alloc_)>(runtime, "cudaMallocAsync");
            free_ = symbol<decltype(free_)>(runtime, "cudaFreeAsync");
        } else {
            void *driver = bench::open_library(options.driver);
            alloc_ = symbol<decltype(alloc_)>(driver, "cuMemAllocAsync");
            free_ = symbol<decltype(free_)>(driver, "cuMemFreeAsync");
        }
    }

    void *alloc(std::size_t bytes, Stream stream) {
        void *block = nullptr;
        Driver::check(alloc_(&block, bytes, stream), "the stream-ordered allocation");
        return block;
    }

    void free(void *block, std::size_t, Stream stream) {
        Driver::check(free_(block, stream), "the stream-ordered free");
    }

private:
    int (*alloc_)(void **, std::size_t, Stream);
    int (*free_)(void *, Stream);
};

__attribute__((noinline)) void *next_address(std::uint64_t &next, std::size_t bytes) {
    const std::uint64_t address = next;
    next += (bytes + 511) / 512 * 512;
    asm volatile("" : : : "memory");
    return reinterpret_cast<void *>(address);
}

__attribute__((noinline)) void take_back(void *block) { asm volatile("" : : "r"(block) : "memory"); }

class Nothing {
public:
    static void open_device(const Options &) {}
    explicit Nothing(const Options &options) {
        if (options.bench == "cold") throw std::runtime_error("there is no memory behind it");
    }

    void *alloc(std::size_t bytes, Stream) {
        thread_local std::uint64_t next = 1 << 30;
        return next_address(next, bytes);
    }
    void free(void *block, std::size_t, Stream) { take_back(block); }
};

// A word a block in a cache line of its own, written by who allocates and compared and swapped by who
// frees. There is no search and no memory: a thread takes its last freed place, or the next free one, STRIDE
// places on: where that is far, no line comes for being next to the last.
template <std::size_t STRIDE>
class Words {
public:
    static void open_device(const Options &) {}
    explicit Words(const Options &options) : Words() {
        if (options.bench == "cold") throw std::runtime_error("there is no memory behind it");
    }

    void *alloc(std::size_t bytes, Stream) {
        thread_local Own own(*this);
        std::size_t place = own.freed;
        own.freed = NONE;
        if (place == NONE) {
            do {
                // No more lines than it takes, so that caches hold as many of them as they can.
                if (own.next == own.window) {
                    if (own.taken > own.window / 2 && own.window < PLACES) own.window *= 2;
                    own.next = own.taken = 0;
                }
                place = own.next++ * STRIDE % own.window;
                own.taken += own.words[place].word.load(std::memory_order_acquire) != 0;
            } while (own.words[place].word.load(std::memory_order_acquire) != 0);
        }
        own.words[place].word.store(bytes, std::memory_order_release);
        last_freed_ = &own.freed;
        return reinterpret_cast<void *>((own.table * PLACES + place + 1) << APART);
    }

    void free(void *block, std::size_t, Stream) {
        const std::size_t number = (reinterpret_cast<std::size_t>(block) >> APART) - 1;
        auto &word = tables_[number / PLACES].load(std::memory_order_relaxed)[number % PLACES].word;
        std::uint64_t bytes = word.load(std::memory_order_acquire);
        if (bytes == 0 || !word.compare_exchange_strong(bytes, 0)) throw std::runtime_error("freed twice");
        if (last_freed_ != nullptr) *last_freed_ = number % PLACES;
    }

private:
    // More than are live in any of the loops.
    static constexpr std::size_t PLACES = 1 << 17, TABLES = 64, NONE = ~std::size_t(0);
    // The loops check that blocks lie apart: they are of 64 MiB at most.
    static constexpr unsigned APART = 26;

    struct alignas(64) Line {
        std::atomic<std::uint64_t> word{0};
    };

    struct Own {
        explicit Own(Words &all) : table(all.used_++), words(new Line[PLACES]), freed(NONE) {
            if (table >= TABLES) throw std::runtime_error("more threads than tables");
            all.tables_[table] = words;
        }
        std::size_t table;
        Line *words;  // for good: other threads free what this one allocated
        std::size_t freed, next = 0, window = 4096, taken = 0;
    };

    Words() = default;

    std::array<std::atomic<Line *>, TABLES> tables_{};
    std::atomic<std::size_t> used_{0};
    static thread_local std::size_t *last_freed_;
};

template <std::size_t STRIDE>
thread_local std::size_t *Words<STRIDE>::last_freed_ = nullptr;

// Odd, so that each of as many places as a power of two is met once.
constexpr std::size_t SCATTERED = 2654435761;

}  // namespace

int main(int count, char **arguments) {
    return bench::main_with(count, arguments, [](const Options &options) {
        if (options.allocator == "cuMemAlloc") bench::run<Plain>(options);
        else if (options.allocator == "none") bench::run<Nothing>(options);
        else if (options.allocator == "words") bench::run<Words<1>>(options);
        else if (options.allocator == "scattered") bench::run<Words<SCATTERED>>(options);
        else bench::run<StreamOrdered>(options);
    });
}
