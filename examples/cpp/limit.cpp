// Owned blocks under a limit: out of memory is an exception here, names what holds most, and the program goes on.
#include <hbmalloc.h>

#include <cstddef>
#include <cstdint>
#include <iostream>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

constexpr std::size_t MiB = std::size_t{1} << 20;

struct OutOfMemory : std::bad_alloc {
    std::string text = hbm_last_error();
    const char *what() const noexcept override { return text.c_str(); }
};

void check(std::int32_t status) {
    if (status == HBM_OUT_OF_MEMORY) {
        throw OutOfMemory();
    }
    if (status != HBM_OK) {
        throw std::runtime_error(hbm_last_error());
    }
}

struct Destroy {
    void operator()(hbm_allocator_t *allocator) const noexcept { hbm_allocator_destroy(allocator); }
};

class Pool {
public:
    explicit Pool(const char *tag) {
        hbm_allocator_desc_t wanted{};
        wanted.struct_size = sizeof wanted;
        wanted.kind = HBM_KIND_POOL;
        wanted.tag = tag;
        hbm_allocator_t *made = nullptr;
        check(hbm_allocator_create(&wanted, &made));
        allocator_.reset(made);
    }

    struct Free {
        hbm_allocator_t *allocator;
        void operator()(void *block) const noexcept { hbm_allocator_deallocate(allocator, block, nullptr); }
    };
    using Block = std::unique_ptr<void, Free>;

    Block allocate(std::size_t bytes) {
        void *block = nullptr;
        check(hbm_allocator_allocate(allocator_.get(), bytes, 0, nullptr, &block));
        return Block(block, Free{allocator_.get()});
    }

    hbm_stats_t stats() const {
        hbm_stats_t found{};
        found.struct_size = sizeof found;
        check(hbm_allocator_stats(allocator_.get(), &found));
        return found;
    }

private:
    std::unique_ptr<hbm_allocator_t, Destroy> allocator_;
};

void run() {
    std::cout << "hbmalloc " << hbm_version_string() << ", at most 64 MiB of device 0\n";
    check(hbm_set_limit(0, 64 * MiB));
    Pool weights("weights");
    std::vector<Pool::Block> blocks;
    try {
        while (true) {
            blocks.push_back(weights.allocate(10 * MiB));
            std::cout << "block " << blocks.size() << " of 10 MiB at " << blocks.back().get() << '\n';
        }
    } catch (const OutOfMemory &error) {
        std::cout << error.what() << '\n';
    }
    blocks.pop_back();
    blocks.push_back(weights.allocate(10 * MiB));
    std::cout << "after one was freed, another at " << blocks.back().get() << '\n';
    const hbm_stats_t stats = weights.stats();
    std::cout << stats.requested / MiB << " MiB requested, " << stats.reserved / MiB << " MiB held of "
              << stats.limit / MiB << '\n';
}

}  // namespace

int main() {
    try {
        run();
    } catch (const std::exception &error) {
        std::cerr << error.what() << '\n';
        return 1;
    }
}
