// cudaMallocAsync from the device's default pool, by the driver's own form of it.
#include "replay.hpp"

namespace {

using bench::Driver;
using bench::Stream;

constexpr int RESERVED_HIGH = 6;  // CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH

class Async {
public:
    Async(const Driver &driver, const char *file) {
        Driver::check(driver.function<int (*)(void **, int)>("cuDeviceGetDefaultMemPool")(&pool_, 0),
                      "cuDeviceGetDefaultMemPool");
        alloc_ = driver.function<decltype(alloc_)>("cuMemAllocAsync");
        free_ = driver.function<decltype(free_)>("cuMemFreeAsync");
        attribute_ = driver.function<decltype(attribute_)>("cuMemPoolGetAttribute");
        // The simulated driver's clock; a real one has none.
        virtual_ns_ = reinterpret_cast<decltype(virtual_ns_)>(dlsym(bench::open_library(file), "hbmsim_virtual_ns"));
        if (virtual_ns_ != nullptr) virtual_before_ = virtual_ns_();
    }

    void *alloc(std::size_t bytes, Stream stream) {
        void *block = nullptr;
        ++calls_;
        Driver::check(alloc_(&block, bytes, stream), "cuMemAllocAsync");
        return block;
    }

    void free(void *block, std::size_t, Stream stream) {
        ++calls_;
        Driver::check(free_(block, stream), "cuMemFreeAsync");
    }

    // On the simulated driver what the call would have cost, not what simulating it took.
    double count(double ns) {
        if (virtual_ns_ == nullptr) return ns;
        const std::uint64_t before = virtual_before_;
        virtual_before_ = virtual_ns_();
        return static_cast<double>(virtual_before_ - before);
    }

    double peak_reserved() {
        std::uint64_t bytes = 0;
        Driver::check(attribute_(pool_, RESERVED_HIGH, &bytes), "cuMemPoolGetAttribute");
        return static_cast<double>(bytes);
    }

    // Every call is the driver's, so all of the time is.
    void tell_times(double total_ms) {
        replay::figure("host_ms", 0);
        replay::figure("driver_ms", total_ms);
        replay::figure("total_ms", total_ms);
        replay::figure("driver_calls", static_cast<double>(calls_));
    }

private:
    void *pool_ = nullptr;
    int (*alloc_)(void **, std::size_t, Stream) = nullptr;
    int (*free_)(void *, Stream) = nullptr;
    int (*attribute_)(void *, int, void *) = nullptr;
    std::uint64_t (*virtual_ns_)() = nullptr;
    std::uint64_t virtual_before_ = 0, calls_ = 0;
};

}  // namespace

int main(int count, char **given) {
    return replay::main_with(count, given, [](const replay::Arguments &arguments) {
        const replay::Trace trace(arguments.events);
        const Driver driver(arguments.driver);
        const auto streams = replay::make_streams(driver, trace);
        Async allocator(driver, arguments.driver);
        replay::run(trace, streams, allocator);
    });
}
