// The kinds of memory that the library has.
#pragma once

#include <hbmalloc/handle_allocator.hpp>

#include <string>

namespace [[gnu::visibility("default")]] hbmalloc {

// What each does is described at hbm_kind.
enum class Kind : int {
    device = HBM_KIND_DEVICE,
    managed = HBM_KIND_MANAGED,
    stream_ordered = HBM_KIND_ASYNC,
    vmm = HBM_KIND_VMM,
    pool = HBM_KIND_POOL,
    pinned = HBM_KIND_PINNED,
    host = HBM_KIND_HEAP,
    numa = HBM_KIND_NUMA,
    pinned_numa = HBM_KIND_PINNED_NUMA,
    huge_pages = HBM_KIND_HUGEPAGE,
    shared_memory = HBM_KIND_SHM,
};

// How an allocator is to be, besides its kind. As it is, for the current device.
struct Options {
    // Memory is for this stream and of its device.
    Stream stream;
    // The device where there is no stream; below 0 the calling thread's current one.
    int device = -1;
    // A tag for its blocks; empty for that of the allocating thread.
    std::string tag;
    // An hbm_location; Kind::vmm only.
    int location = HBM_LOCATION_DEFAULT;
    // These are as in hbm_allocator_desc_t, for memory of the host.
    int numa_policy = HBM_NUMA_DEFAULT;
    int numa_node = 0;
    std::uint64_t numa_nodes = 0;
    std::uint64_t page_bytes = 0;
    std::string name;
    bool is_attached = false;
    bool is_pinned = true;
};

namespace detail {

constexpr bool is_of_device(Kind kind) {
    return kind == Kind::device || kind == Kind::managed || kind == Kind::stream_ordered || kind == Kind::vmm ||
           kind == Kind::pool;
}

constexpr bool is_without_driver(Kind kind) { return kind == Kind::host || kind == Kind::numa; }

constexpr DeviceType type_of(Kind kind, bool is_pinned) {
    return is_of_device(kind) ? kDEVICE : is_without_driver(kind) || !is_pinned ? kCPU : kCPUpinned;
}

}  // namespace detail

// An allocator of the library. Any thread; streams as given in the options unless a call names another.
class KindAllocator : public detail::HandleAllocator {
public:
    // Throws where there is no such device, no driver, or no such memory on this machine.
    explicit KindAllocator(Kind kind, const Options &options = {}) : HandleAllocator(options.stream), kind_(kind) {
        const DeviceType type = detail::type_of(kind, options.is_pinned);
        int ordinal = 0;
        if (kind == Kind::pinned || detail::is_of_device(kind)) {
            ordinal = stream_ ? stream_.device() : options.device < 0 ? current_device() : options.device;
        }
        hbm_allocator_desc_t descriptor{};
        descriptor.struct_size = sizeof descriptor;
        descriptor.kind = static_cast<int>(kind);
        descriptor.device = ordinal;
        descriptor.tag = options.tag.empty() ? nullptr : options.tag.c_str();
        descriptor.location = options.location;
        descriptor.numa_policy = options.numa_policy;
        descriptor.numa_node = options.numa_node;
        descriptor.numa_nodes = options.numa_nodes;
        descriptor.page_bytes = options.page_bytes;
        descriptor.shm_name = options.name.empty() ? nullptr : options.name.c_str();
        descriptor.shm_attach = options.is_attached;
        descriptor.unpinned = !options.is_pinned;
        create(Device(type, ordinal), descriptor);
    }

    // The library knows the size of each of its blocks: `bytes` must not be negative, and is not looked at else.
    void deallocate(void *address, ssize_t bytes) noexcept final {
        if (__builtin_expect(bytes < 0, 0)) {
            detail::report(HBM_INVALID_ARGUMENT, "deallocate: a size below 0", address);
            return;
        }
        const int status = hbm_allocator_deallocate(handle_, address, raw_stream_);
        if (__builtin_expect(status != HBM_OK, 0)) {
            const bool is_logged = device_.type == kDEVICE || kind_ == Kind::pinned;
            detail::report_last(status, address, is_logged ? detail::Logged::yes : detail::Logged::no);
        }
    }

    Kind kind() const noexcept { return kind_; }

    bool is_host_accessible() const noexcept final { return device_.type != kDEVICE || kind_ == Kind::managed; }

    hbm_status try_deallocate(void *address, std::size_t, StreamRef stream) noexcept final {
        return static_cast<hbm_status>(hbm_allocator_deallocate(handle_, address, stream.raw()));
    }

private:
    Kind kind_;
};

}  // namespace hbmalloc
