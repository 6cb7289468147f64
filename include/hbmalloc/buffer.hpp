// Memory that gives itself back.
#pragma once

#include <hbmalloc/allocator.hpp>

namespace [[gnu::visibility("default")]] hbmalloc {

// One block, with the allocator and the stream that it is of. Moved, not copied; what was moved from is empty. One
// thread at a time.
class Buffer {
public:
    Buffer() = default;

    // `bytes` of memory for use on the allocator's own stream. Throws as Allocator::allocate.
    Buffer(Allocator allocator, std::size_t bytes)
        : allocator_(std::move(allocator)), data_(allocator_.allocate(bytes)), bytes_(bytes) {}

    // For use on `stream`, which must be valid.
    Buffer(Allocator allocator, std::size_t bytes, Stream stream)
        : allocator_(std::move(allocator)), stream_(std::move(stream)), bytes_(bytes) {
        data_ = allocator_.allocate(bytes, stream_.handle());
    }

    Buffer(Buffer &&other) noexcept { swap(other); }

    Buffer &operator=(Buffer &&other) noexcept {
        Buffer(std::move(other)).swap(*this);
        return *this;
    }

    Buffer(const Buffer &) = delete;
    Buffer &operator=(const Buffer &) = delete;

    // Gives the block back behind work given to its stream before.
    ~Buffer() {
        if (stream_) {
            allocator_.deallocate(data_, bytes_, stream_);
        } else {
            allocator_.deallocate(data_, bytes_);
        }
    }

    void reset() noexcept { Buffer().swap(*this); }

    void swap(Buffer &other) noexcept {
        std::swap(allocator_, other.allocator_);
        std::swap(stream_, other.stream_);
        std::swap(data_, other.data_);
        std::swap(bytes_, other.bytes_);
    }

    void *data() const noexcept { return data_; }
    std::size_t size() const noexcept { return bytes_; }
    explicit operator bool() const noexcept { return data_ != nullptr; }

    template <class T>
    T *as() const noexcept {
        return static_cast<T *>(data_);
    }

    const Allocator &allocator() const noexcept { return allocator_; }

    // Its stream; invalid where it is the allocator's.
    const Stream &stream() const noexcept { return stream_; }

    // The block is given back behind work given to `stream` as well as to the stream of the allocation; an invalid one
    // is the allocator's.
    void set_stream(Stream stream) noexcept { stream_ = std::move(stream); }

    // The block, for the caller to deallocate; the buffer is empty then.
    void *release() noexcept {
        bytes_ = 0;
        return std::exchange(data_, nullptr);
    }

private:
    Allocator allocator_;
    // Valid only where it is another than the allocator's: a handle less to copy for the rest.
    Stream stream_;
    void *data_ = nullptr;
    std::size_t bytes_ = 0;
};

inline void swap(Buffer &a, Buffer &b) noexcept { a.swap(b); }

}  // namespace hbmalloc
