// Containers of the standard library on memory of ours.
#include "expect.hpp"

#include <list>
#include <map>
#include <memory_resource>
#include <string>
#include <vector>

using hbmalloc::Allocator;
using hbmalloc::HostResource;
using hbmalloc::kCPU;
using hbmalloc::kCPUpinned;
using hbmalloc::kDEVICE;
using hbmalloc::Kind;

namespace {

void containers(const Allocator &allocator) {
    const std::uint64_t before = allocator.stats().requested;
    HostResource resource(allocator), same(allocator);
    CHECK(resource == same && !(resource == *std::pmr::new_delete_resource()));
    {
        std::pmr::vector<int> numbers(&resource);
        for (int i = 0; i < 10000; i++) {
            numbers.push_back(i);
        }
        std::pmr::string text("a text that does not fit into the string itself", &resource);
        std::pmr::map<int, std::pmr::string> names(&resource);
        for (int i = 0; i < 20; i++) {
            names.emplace(i, text);
        }
        std::pmr::vector<int> taken(std::move(numbers), &same);
        CHECK(taken[9999] == 9999 && names.at(19) == text);
        CHECK(allocator.stats().requested >= before + 10000 * sizeof(int));
        // What it is asked for is far smaller than what it asks us for.
        std::pmr::monotonic_buffer_resource step(1 << 16, &resource);
        std::pmr::list<int> many(&step);
        for (int i = 0; i < 1000; i++) {
            many.push_back(i);
        }
        CHECK(many.back() == 999);
    }
    CHECK(allocator.stats().requested == before);
    void *none = resource.allocate(0, 1), *other = resource.allocate(0, 1);
    CHECK(none != nullptr && none != other);
    resource.deallocate(none, 0, 1);
    resource.deallocate(other, 0, 1);
    thrown<std::bad_alloc>(HBM_OUT_OF_MEMORY, [&] {
        std::pmr::vector<std::byte> huge(&resource);
        huge.reserve(std::size_t(1) << 60);
    });
    CHECK(allocator.stats().requested == before);
}

}  // namespace

int main() {
    containers(Allocator(kCPUpinned));
    containers(Allocator(kCPU));
    for (Kind kind : {Kind::managed, Kind::numa, Kind::pinned_numa}) {
        containers(Allocator(kind));
    }
    for (Kind kind : {Kind::device, Kind::stream_ordered, Kind::vmm, Kind::pool}) {
        CHECK(has(thrown<std::runtime_error>(HBM_UNSUPPORTED, [&] { HostResource resource{Allocator(kind)}; }), "host"));
    }
    auto arena = Allocator(kCPUpinned).adapt<hbmalloc::Arena>();
    HostResource over_arena(arena);
    thrown(HBM_UNSUPPORTED, [] { HostResource resource(Allocator(kDEVICE).adapt<hbmalloc::Arena>()); });
    thrown(HBM_INVALID_ARGUMENT, [] { HostResource resource{Allocator()}; });
    void *block = over_arena.allocate(100, 64);
    std::memset(block, 1, 100);
    over_arena.deallocate(block, 100, 64);
    std::puts("resources: fine");
}
