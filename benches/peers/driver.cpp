// The driver's own calls: cuMemAlloc, cuMemAllocAsync; cudaMallocAsync, where --library names a CUDA
// runtime; and "none", which allocates nothing and so shows what the loops themselves cost.
#include "loops.hpp"

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

}  // namespace

int main(int count, char **arguments) {
    return bench::main_with(count, arguments, [](const Options &options) {
        if (options.allocator == "cuMemAlloc") bench::run<Plain>(options);
        else if (options.allocator == "none") bench::run<Nothing>(options);
        else bench::run<StreamOrdered>(options);
    });
}
