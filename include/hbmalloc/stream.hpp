// Streams and events as shared handles, without the driver's headers. `cudaStream_t` and `CUstream` are pointers to
// CUstream_st, `cudaEvent_t` and `CUevent` to CUevent_st: with CUDA's headers these are the same types.
#pragma once

#include <hbmalloc/device.hpp>
#include <hbmalloc/error.hpp>

#include <memory>

struct CUstream_st;
struct CUevent_st;

namespace [[gnu::visibility("default")]] hbmalloc {

namespace detail {

struct StreamState {
    void *handle = nullptr;
    int device = 0;
    bool is_owned = false;

    StreamState() = default;
    StreamState(const StreamState &) = delete;
    StreamState &operator=(const StreamState &) = delete;

    ~StreamState() {
        if (is_owned) {
            if (int status = hbm_stream_destroy(handle)) {
                report_last(status, handle);
            }
        }
    }
};

struct EventState {
    void *handle = nullptr;

    EventState() = default;
    EventState(const EventState &) = delete;
    EventState &operator=(const EventState &) = delete;

    ~EventState() {
        if (int status = hbm_event_destroy(handle)) {
            report_last(status, handle);
        }
    }
};

}  // namespace detail

class Stream;

// A shared handle of an event; invalid by default. Copies mean the same event, which the last one destroys. Any thread.
class Event {
public:
    Event() = default;

    // Makes an event on the calling thread's current device, which notes times only if it is to.
    static Event create(bool timing = false) { return create_on(current_device(), timing); }

    static Event create_on(int device, bool timing = false) {
        Event event;
        event.state_ = std::make_shared<detail::EventState>();
        detail::check(hbm_event_create(device, timing ? HBM_EVENT_TIMING : 0, &event.state_->handle));
        return event;
    }

    // Records it behind what `stream`, of the same device, has been given so far.
    inline void Record(const Stream &stream) const;

    // Waits on the host for the last recording; returns at once where there was none.
    void Sync() const { detail::check(hbm_event_synchronize(handle())); }

    // Throws where it is invalid, as all the others do.
    CUevent_st *handle() const {
        if (state_ == nullptr) {
            detail::raise(HBM_INVALID_ARGUMENT, "an event that was not created (Event::create) is used");
        }
        return static_cast<CUevent_st *>(state_->handle);
    }

    explicit operator CUevent_st *() const { return handle(); }
    explicit operator bool() const noexcept { return state_ != nullptr; }

private:
    std::shared_ptr<detail::EventState> state_;
};

// A shared handle of a stream; invalid by default. Copies mean the same stream. Any thread.
class Stream {
public:
    Stream() = default;

    // Makes a stream on the calling thread's current device that runs beside the legacy stream. A lower `priority`
    // is more urgent; the driver brings it into its range. The last handle destroys it: its work ends all the same,
    // and blocks that it used stay valid.
    static Stream create(int priority = 0) { return create_on(current_device(), priority); }

    static Stream create_on(int device, int priority = 0) {
        Stream stream;
        stream.state_ = std::make_shared<detail::StreamState>();
        detail::check(hbm_stream_create(device, priority, 0, &stream.state_->handle));
        stream.state_->device = device;
        stream.state_->is_owned = true;
        return stream;
    }

    // A stream that the program made and keeps; NULL is the legacy stream of the current device. Call
    // hbm_stream_forget before it is destroyed.
    static Stream borrow(CUstream_st *handle) {
        Stream stream;
        stream.state_ = std::make_shared<detail::StreamState>();
        stream.state_->handle = handle;
        detail::check(hbm_stream_device(handle, &stream.state_->device));
        return stream;
    }

    // Throws where it is invalid, as all the others do.
    CUstream_st *handle() const { return static_cast<CUstream_st *>(valid().handle); }

    // The number of its device.
    int device() const { return valid().device; }

    // Waits on the host until it has done all that it was given so far.
    void Sync() const { detail::check(hbm_stream_synchronize(valid().device, valid().handle)); }

    // What it is given from here on waits for the last recording of `event`, of whatever device. The host does not.
    void Wait(const Event &event) const {
        detail::check(hbm_stream_wait_event(valid().device, valid().handle, event.handle()));
    }

    explicit operator CUstream_st *() const { return handle(); }
    explicit operator bool() const noexcept { return state_ != nullptr; }

    friend bool operator==(const Stream &a, const Stream &b) noexcept {
        if (a.state_ == nullptr || b.state_ == nullptr) {
            return a.state_ == b.state_;
        }
        return a.state_->handle == b.state_->handle && a.state_->device == b.state_->device;
    }
    friend bool operator!=(const Stream &a, const Stream &b) noexcept { return !(a == b); }

private:
    friend class StreamRef;

    const detail::StreamState &valid() const {
        if (state_ == nullptr) {
            detail::raise(HBM_INVALID_ARGUMENT, "a stream that was not created (Stream::create) is used");
        }
        return *state_;
    }

    std::shared_ptr<detail::StreamState> state_;
};

inline void Event::Record(const Stream &stream) const { detail::check(hbm_event_record(handle(), stream.handle())); }

// A stream as an argument: a Stream, or the driver's handle. An invalid Stream is the legacy stream, as NULL is.
class StreamRef {
public:
    StreamRef(std::nullptr_t) noexcept {}                             // NOLINT: implicit, as the class is for arguments
    StreamRef(CUstream_st *handle) noexcept : handle_(handle) {}      // NOLINT
    StreamRef(const Stream &stream) noexcept                          // NOLINT
        : handle_(stream.state_ == nullptr ? nullptr : stream.state_->handle) {}

    static StreamRef of(void *handle) noexcept { return StreamRef(static_cast<CUstream_st *>(handle)); }

    void *raw() const noexcept { return handle_; }

private:
    void *handle_ = nullptr;
};

}  // namespace hbmalloc
