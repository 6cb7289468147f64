// Containers of the standard library on memory that the host may touch.
#pragma once

#include <hbmalloc/allocator.hpp>

#include <memory_resource>

namespace [[gnu::visibility("default")]] hbmalloc {

// A std::pmr::memory_resource over an allocator whose memory the host may read and write: of the host, pinned or managed.
// Any thread, as far as the allocator. Equal to others over the same allocator; without RTTI to itself alone.
class HostResource : public std::pmr::memory_resource {
public:
    // Throws Failure (HBM_UNSUPPORTED) where the host cannot touch the memory.
    explicit HostResource(Allocator allocator) : allocator_(std::move(allocator)) {
        if (!allocator_->is_host_accessible()) {
            detail::raise(HBM_UNSUPPORTED,
                          "the host cannot touch this allocator's memory, so no container can lie there: use the kinds "
                          "host, numa, pinned or managed");
        }
        stream_ = allocator_->stream();
    }

    const Allocator &allocator() const noexcept { return allocator_; }

private:
    // Containers need an address of their own for 0 bytes too.
    static std::size_t at_least_one(std::size_t bytes) noexcept { return bytes == 0 ? 1 : bytes; }

    void *do_allocate(std::size_t bytes, std::size_t alignment) override {
        return allocator_.allocate(at_least_one(bytes), stream_, alignment);
    }

    void do_deallocate(void *address, std::size_t bytes, std::size_t) noexcept override {
        allocator_.deallocate(address, at_least_one(bytes), stream_);
    }

    bool do_is_equal(const std::pmr::memory_resource &other) const noexcept override {
#ifdef __cpp_rtti
        auto *same = dynamic_cast<const HostResource *>(&other);
        return same != nullptr && same->allocator_ == allocator_;
#else
        return this == &other;
#endif
    }

    Allocator allocator_;
    Stream stream_;
};

}  // namespace hbmalloc
