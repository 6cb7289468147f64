// A program without types at run time (-fno-rtti).
#include "check.hpp"

#include <hbmalloc.hpp>

#include <vector>

int main() {
    CHECK(hbm_option_set("log", "off") == HBM_OK);
    hbmalloc::HostResource resource{hbmalloc::Allocator(hbmalloc::kCPU)}, other{resource.allocator()};
    CHECK(resource.is_equal(resource) && !resource.is_equal(other));
    std::pmr::vector<int> numbers(1000, 7, &resource);
    CHECK(numbers.back() == 7);
    try {
        hbmalloc::Allocator(hbmalloc::kCPU)->allocate(-1);
        CHECK(!"thrown");
    } catch (const hbmalloc::Error &error) {
        CHECK(error.status() == HBM_INVALID_ARGUMENT);
    }
}
