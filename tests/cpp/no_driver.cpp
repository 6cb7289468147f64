// A machine without a driver: errors that say so, and memory of the host all the same.
#include "expect.hpp"

using hbmalloc::Allocator;
using hbmalloc::kCPU;
using hbmalloc::Stream;

int main() {
    int32_t devices = 0;
    if (hbm_device_count(&devices) == HBM_OK) {
        std::puts("skipped: there is a driver");
        return 0;
    }
    thrown<std::runtime_error>(HBM_NO_DRIVER, [] { Allocator pool(hbmalloc::kDEVICE); });
    thrown(HBM_NO_DRIVER, [] { Allocator pinned(hbmalloc::kCPUpinned); });
    thrown(HBM_NO_DRIVER, [] { Stream::create(); });
    thrown(HBM_NO_DRIVER, [] { hbmalloc::Event::create(); });
    thrown(HBM_NO_DRIVER, [] { Stream::borrow(nullptr); });
    CHECK(hbmalloc::Device(hbmalloc::kDEVICE).id == 0);
    Allocator host(kCPU);
    hbmalloc::Buffer buffer(host, 1000);
    auto arena = host.adapt<hbmalloc::Arena>();
    arena->deallocate(arena->allocate(100), 100);
    arena->iter();
    arena->deallocate(arena->allocate(100), 100);
    std::puts("no driver: fine");
}
