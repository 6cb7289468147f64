// LMCache's functions as a C++ program calls them: what they give, and what they throw.
#include "check.hpp"

#include <hbmalloc/mem_alloc.h>

#include <cstring>
#include <functional>
#include <string>
#include <vector>

namespace lm = hbmalloc::lmcache;

namespace {

constexpr std::size_t MIB = 1 << 20;

// What the call throws, which must be of the kind.
template <typename Error>
std::string thrown_by(const std::function<void()> &call) {
    try {
        call();
    } catch (const Error &error) {
        return error.what();
    }
    std::fprintf(stderr, "nothing was thrown\n");
    std::exit(1);
}

bool has(const std::string &text, const char *part) { return text.find(part) != std::string::npos; }

hbm_host_blocks_t held() {
    hbm_host_blocks_t blocks{};
    blocks.struct_size = sizeof blocks;
    CHECK(hbm_host_blocks(&blocks) == HBM_OK);
    return blocks;
}

void use(std::uintptr_t address, std::size_t size, bool is_pinned) {
    auto *bytes = reinterpret_cast<unsigned char *>(address);
    CHECK(bytes[0] == 0 && bytes[size - 1] == 0);
    std::memset(bytes, 7, size);
    CHECK(held().blocks == 1 && held().requested == size && (held().pinned > 0) == is_pinned);
}

void every_kind() {
    const std::size_t size = 3 * MIB + 1;
    std::uintptr_t block = lm::alloc_pinned_ptr(size, 0);
    use(block, size, true);
    lm::free_pinned_ptr(block);
    block = lm::alloc_numa_ptr(size, 0);
    use(block, size, false);
    CHECK(has(thrown_by<std::runtime_error>([&] { lm::free_numa_ptr(block, size - 1); }), "bytes, not"));
    CHECK(has(thrown_by<std::runtime_error>([&] { lm::free_pinned_ptr(block); }), "hbm_free_numa_ptr"));
    lm::free_numa_ptr(block, size);
    CHECK(has(thrown_by<std::runtime_error>([&] { lm::free_numa_ptr(block, size); }), "freed before"));
    block = lm::alloc_pinned_numa_ptr(size, 0);
    use(block, size, true);
    lm::free_pinned_numa_ptr(block, size);
    const std::string name = "hbmalloc-test-mem-alloc";
    block = lm::alloc_shm_pinned_ptr(size, name);
    use(block, size, true);
    thrown_by<std::runtime_error>([&] { lm::free_shm_pinned_ptr(block, size, "another"); });
    lm::free_shm_pinned_ptr(block, size, name);
    thrown_by<std::runtime_error>([&] { lm::alloc_shm_pinned_ptr(size, std::string("a\0b", 3)); });
    CHECK(held().blocks == 0);
}

// Few machines have pages set aside; then the error counts them.
void huge_pages() {
    try {
        std::uintptr_t block = lm::alloc_hugepage_pinned_ptr(3 * MIB, 0);
        use(block, 3 * MIB, true);
        lm::free_hugepage_pinned_ptr(block, 3 * MIB);
        block = lm::alloc_hugepage_pinned_numa_ptr(2 * MIB, 0);
        lm::free_hugepage_pinned_numa_ptr(block, 2 * MIB);
    } catch (const std::runtime_error &error) {
        CHECK(has(error.what(), "huge pages of 2 MiB are needed"));
    }
    thrown_by<std::runtime_error>([] { lm::free_hugepage_pinned_ptr(4096, 4096); });
    thrown_by<std::runtime_error>([] { lm::free_hugepage_pinned_numa_ptr(4096, 4096); });
}

void refused() {
    CHECK(has(thrown_by<std::runtime_error>([] { lm::alloc_pinned_ptr(0, 0); }), "0 bytes"));
    CHECK(has(thrown_by<std::runtime_error>([] { lm::alloc_pinned_ptr(MIB, 8); }), "flags 0x8"));
    for (int node : {-1, 64, 1023}) {
        CHECK(has(thrown_by<std::runtime_error>([&] { lm::alloc_numa_ptr(MIB, node); }), "Nodes with memory"));
        thrown_by<std::runtime_error>([&] { lm::alloc_pinned_numa_ptr(MIB, node); });
    }
}

void copies() {
    std::vector<unsigned char> source(1000), target(1000);
    for (std::size_t i = 0; i < source.size(); i++) {
        source[i] = static_cast<unsigned char>(i);
    }
    auto from = reinterpret_cast<std::uintptr_t>(source.data());
    auto to = reinterpret_cast<std::uintptr_t>(target.data());
    lm::batched_memcpy({}, {}, {});
    lm::batched_memcpy({from, from + 500, from}, {to + 500, to, 0}, {500, 500, 0});
    CHECK(std::memcmp(&target[0], &source[500], 500) == 0 && std::memcmp(&target[500], &source[0], 500) == 0);
    CHECK(has(thrown_by<std::invalid_argument>([&] { lm::batched_memcpy({from}, {to}, {1, 2}); }), "2 sizes"));
    thrown_by<std::invalid_argument>([&] { lm::batched_memcpy({from}, {}, {1}); });
    CHECK(has(thrown_by<std::runtime_error>([&] { lm::batched_memcpy({from}, {0}, {1}); }), "piece 0"));
}

}  // namespace

int main() {
    every_kind();
    huge_pages();
    refused();
    copies();
    CHECK(held().blocks == 0);
    return 0;
}
