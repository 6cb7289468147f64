// What every allocator is, whoever wrote it.
#pragma once

#include <hbmalloc/device.hpp>
#include <hbmalloc/error.hpp>
#include <hbmalloc/stream.hpp>

#include <cstddef>
#include <cstdint>
#include <limits>

namespace [[gnu::visibility("default")]] hbmalloc {

namespace detail {

// That of blocks for which none was asked.
inline constexpr std::size_t own_alignment = 256;

inline constexpr std::size_t most_bytes = static_cast<std::size_t>(std::numeric_limits<ssize_t>::max());

[[noreturn, gnu::cold, gnu::noinline]] inline void raise_negative(ssize_t bytes) {
    raise(HBM_INVALID_ARGUMENT, "allocate: a size of " + std::to_string(bytes) + " bytes");
}

// The status of the exception that is being handled.
inline hbm_status status_of_exception() noexcept {
    try {
        throw;
    } catch (const Error &error) {
        return error.status();
    } catch (const std::bad_alloc &) {
        return HBM_OUT_OF_MEMORY;
    } catch (...) {
        return HBM_INTERNAL;
    }
}

}  // namespace detail

// Derive from it for an allocator of your own: allocate, deallocate and device are enough. Called from whatever
// threads use the allocator. Only deallocate is without noexcept for the sake of those that do not say it; what it
// throws is dropped by all that frees by way of Allocator, Buffer and the resources.
class AllocatorImpl {
public:
    AllocatorImpl() = default;
    AllocatorImpl(const AllocatorImpl &) = delete;
    AllocatorImpl &operator=(const AllocatorImpl &) = delete;
    virtual ~AllocatorImpl() = default;

    // `bytes` for use on stream(). Ours give NULL for 0 bytes, align to 256 at least, and throw Error for a size below
    // 0 and where there is no memory; so should yours.
    virtual void *allocate(ssize_t bytes) = 0;

    // Takes a block back; work given to stream() before may still use it. NULL is fine. Ours throw nothing and leave
    // alone what is no block of theirs; set_deallocation_handler hears of it.
    virtual void deallocate(void *address, ssize_t bytes) = 0;

    // The stream that memory is for; invalid for memory that knows none, and for that of the legacy stream.
    virtual Stream stream() const { return {}; }

    virtual Device device() const = 0;

    // Gives cached memory back to the driver, down to `bytes_to_keep` bytes. Waits for work on freed blocks.
    virtual void trim(std::size_t bytes_to_keep) { static_cast<void>(bytes_to_keep); }

    // Whether the host may read and write the memory.
    virtual bool is_host_accessible() const { return device().type != kDEVICE; }

    // Whether devices may.
    virtual bool is_device_accessible() const { return device().type != kCPU; }

    // Writes `bytes` aligned to `alignment`, a power of two (0 for its own), for use on `stream`, to `*out`; NULL for
    // 0 bytes. hbm_last_error() tells the rest of a failure that is the library's. An implementation with allocate alone
    // waits for stream() where `stream` is another, and answers HBM_UNSUPPORTED for an alignment that it does not have.
    virtual hbm_status try_allocate(std::size_t bytes, std::size_t alignment, StreamRef stream, void **out) noexcept {
        *out = nullptr;
        try {
            if (bytes > detail::most_bytes) {
                return HBM_OUT_OF_MEMORY;
            }
            void *address = allocate(static_cast<ssize_t>(bytes));
            if (address == nullptr) {
                return bytes == 0 ? HBM_OK : HBM_OUT_OF_MEMORY;
            }
            const bool is_aligned = alignment == 0 || reinterpret_cast<std::uintptr_t>(address) % alignment == 0;
            hbm_status status = is_aligned ? HBM_OK : HBM_UNSUPPORTED;
            if (is_aligned && is_other(stream)) {
                status = wait_for(StreamRef(this->stream()));
            }
            if (status != HBM_OK) {
                deallocate(address, static_cast<ssize_t>(bytes));
                return status;
            }
            *out = address;
            return HBM_OK;
        } catch (...) {
            return detail::status_of_exception();
        }
    }

    // Takes a block back; work given to the stream it was allocated on, and to `stream`, may still use it. An
    // implementation with deallocate alone waits for `stream` where that is not stream().
    virtual hbm_status try_deallocate(void *address, std::size_t bytes, StreamRef stream) noexcept {
        try {
            if (is_other(stream)) {
                if (const hbm_status status = wait_for(stream); status != HBM_OK) {
                    return status;
                }
            }
            deallocate(address, static_cast<ssize_t>(bytes));
            return HBM_OK;
        } catch (...) {
            return detail::status_of_exception();
        }
    }

    // The allocator of the C interface behind it, which is this object's; NULL where there is none.
    virtual hbm_allocator_t *native() const noexcept { return nullptr; }

private:
    bool is_other(StreamRef asked) const {
        const Stream own = stream();
        return own && StreamRef(own).raw() != asked.raw();
    }

    hbm_status wait_for(StreamRef other) const {
        return static_cast<hbm_status>(hbm_stream_synchronize(device().id, other.raw()));
    }
};

}  // namespace hbmalloc
