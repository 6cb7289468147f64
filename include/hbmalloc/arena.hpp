// The stack over another allocator: HBM_KIND_ARENA, where it is described.
#pragma once

#include <hbmalloc/allocator.hpp>

#include <map>

namespace [[gnu::visibility("default")]] hbmalloc {

namespace detail {

// An implementation of the program's as an allocator of the C interface, which an arena can be over.
class Bridge {
public:
    explicit Bridge(std::shared_ptr<AllocatorImpl> impl) : state_(std::make_unique<State>(std::move(impl))) {
        hbm_custom_t functions{};
        functions.struct_size = sizeof functions;
        functions.context = state_.get();
        functions.allocate = [](void *context, std::size_t bytes, std::size_t alignment, void *stream, void **out) {
            return static_cast<State *>(context)->allocate(bytes, alignment, StreamRef::of(stream), out);
        };
        functions.deallocate = [](void *context, void *address, std::size_t bytes, void *stream) {
            return static_cast<State *>(context)->deallocate(address, bytes, StreamRef::of(stream));
        };
        functions.trim = [](void *context, std::uint64_t keep, std::uint64_t *released) {
            return static_cast<State *>(context)->trim(keep, released);
        };
        hbm_allocator_desc_t descriptor{};
        descriptor.struct_size = sizeof descriptor;
        descriptor.kind = HBM_KIND_CUSTOM;
        descriptor.device = state_->impl->device().id;
        descriptor.functions = &functions;
        check(hbm_allocator_create(&descriptor, &handle_));
    }

    Bridge(const Bridge &) = delete;
    Bridge &operator=(const Bridge &) = delete;

    ~Bridge() {
        if (int status = hbm_allocator_destroy(handle_)) {
            // The library may still call the functions for the blocks that are left.
            static_cast<void>(state_.release());
            report_last(status, handle_);
        }
    }

    hbm_allocator_t *handle() const noexcept { return handle_; }

private:
    struct Whole {
        void *address;
        std::size_t bytes;
    };

    struct State {
        explicit State(std::shared_ptr<AllocatorImpl> over) : impl(std::move(over)) {}

        // Who aligns to less is asked for more, and what was given is remembered by the address in it.
        std::int32_t allocate(std::size_t bytes, std::size_t alignment, StreamRef stream, void **out) noexcept {
            const hbm_status status = impl->try_allocate(bytes, alignment, stream, out);
            if (status != HBM_UNSUPPORTED || bytes > most_bytes - alignment) {
                return status;
            }
            Whole whole{nullptr, bytes + alignment};
            if (const hbm_status larger = impl->try_allocate(whole.bytes, 0, stream, &whole.address)) {
                return larger;
            }
            void *address = whole.address;
            std::size_t room = whole.bytes;
            std::align(alignment, bytes, address, room);
            try {
                std::lock_guard<std::mutex> guard(lock);
                larger_blocks.emplace(address, whole);
            } catch (...) {
                static_cast<void>(impl->try_deallocate(whole.address, whole.bytes, stream));
                return HBM_OUT_OF_MEMORY;
            }
            *out = address;
            return HBM_OK;
        }

        std::int32_t deallocate(void *address, std::size_t bytes, StreamRef stream) noexcept {
            auto known = [&] {
                std::lock_guard<std::mutex> guard(lock);
                return larger_blocks.extract(address);
            }();
            const Whole whole = known.empty() ? Whole{address, bytes} : known.mapped();
            const hbm_status status = impl->try_deallocate(whole.address, whole.bytes, stream);
            if (status != HBM_OK && !known.empty()) {
                std::lock_guard<std::mutex> guard(lock);
                larger_blocks.insert(std::move(known));
            }
            return status;
        }

        std::int32_t trim(std::uint64_t keep, std::uint64_t *released) noexcept {
            *released = 0;
            try {
                impl->trim(keep);
                return HBM_OK;
            } catch (...) {
                return status_of_exception();
            }
        }

        std::shared_ptr<AllocatorImpl> impl;
        std::mutex lock;
        // A node goes in and out without memory being asked for.
        std::map<void *, Whole> larger_blocks;
    };

    std::unique_ptr<State> state_;
    hbm_allocator_t *handle_ = nullptr;
};

}  // namespace detail

// Blocks behind one another in one region of the upstream's memory, freed in the reverse order of their allocation, by
// the size they were asked for with; what does not fit is the upstream's own. Aligned to 256. The stream is the upstream's.
class Arena : public detail::HandleAllocator {
public:
    explicit Arena(std::shared_ptr<AllocatorImpl> upstream)
        : HandleAllocator(there(upstream).stream()), upstream_(std::move(upstream)) {
        const Device device = upstream_->device();
        hbm_allocator_desc_t descriptor{};
        descriptor.struct_size = sizeof descriptor;
        descriptor.kind = HBM_KIND_ARENA;
        descriptor.device = device.id;
        descriptor.upstream = upstream_->native();
        if (descriptor.upstream == nullptr) {
            bridge_ = std::make_unique<detail::Bridge>(upstream_);
            descriptor.upstream = bridge_->handle();
        }
        create(device, descriptor);
    }

    // The region goes before what it is over.
    ~Arena() override { destroy(); }

    // A wrong size, a wrong order and a foreign block change nothing; the handler of set_deallocation_handler hears of them.
    void deallocate(void *address, ssize_t bytes) noexcept final {
        const auto size = static_cast<std::size_t>(bytes);
        const int status = hbm_allocator_deallocate_sized(handle_, address, size, raw_stream_);
        if (__builtin_expect(status != HBM_OK, 0)) {
            detail::report_last(status, address);
        }
    }

    // Between two steps of the program: the region becomes as large as the largest need so far. Does not move blocks.
    void iter() { detail::check(hbm_arena_iter(handle_, raw_stream_)); }

    hbm_arena_stats_t arena_stats() const {
        hbm_arena_stats_t stats{};
        stats.struct_size = sizeof stats;
        detail::check(hbm_arena_stats(handle_, &stats));
        return stats;
    }

    bool is_host_accessible() const final { return upstream_->is_host_accessible(); }
    bool is_device_accessible() const final { return upstream_->is_device_accessible(); }

    hbm_status try_deallocate(void *address, std::size_t bytes, StreamRef stream) noexcept final {
        return static_cast<hbm_status>(hbm_allocator_deallocate_sized(handle_, address, bytes, stream.raw()));
    }

private:
    static const AllocatorImpl &there(const std::shared_ptr<AllocatorImpl> &upstream) {
        if (upstream == nullptr) {
            detail::raise(HBM_INVALID_ARGUMENT, "an arena needs an allocator that it is over");
        }
        return *upstream;
    }

    std::shared_ptr<AllocatorImpl> upstream_;
    std::unique_ptr<detail::Bridge> bridge_;
};

}  // namespace hbmalloc
