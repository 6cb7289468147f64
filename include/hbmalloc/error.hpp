// What goes wrong, as exceptions: hbmalloc::Error is caught by all of them, OutOfMemory by std::bad_alloc as well,
// and every one by std::exception.
#pragma once

#include <hbmalloc.h>

#include <atomic>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <new>
#include <stdexcept>
#include <string>

namespace [[gnu::visibility("default")]] hbmalloc {

// What every exception of this library says. Not itself a std::exception, which OutOfMemory has from
// std::bad_alloc: two of them in one object would be caught by no handler of std::exception.
class Error {
public:
    virtual ~Error() = default;

    // The kind of failure, never HBM_OK.
    hbm_status status() const noexcept { return status_; }

    // The driver's code, 0 where the driver was not the cause.
    int driver_code() const noexcept { return driver_code_; }

    // Operation, code, sizes and what to do.
    virtual const char *what() const noexcept = 0;

protected:
    Error(hbm_status status, int driver_code) noexcept : status_(status), driver_code_(driver_code) {}
    Error(const Error &) = default;
    Error &operator=(const Error &) = default;

private:
    hbm_status status_;
    int driver_code_;
};

// HBM_OUT_OF_MEMORY: of a device, of the host, or of a limit.
class OutOfMemory final : public std::bad_alloc, public Error {
public:
    OutOfMemory(int driver_code, const std::string &text) : Error(HBM_OUT_OF_MEMORY, driver_code), text_(text) {}

    const char *what() const noexcept override { return text_.what(); }

private:
    // Copying an exception must not throw, as copying a std::string may.
    std::runtime_error text_;
};

// Every other status.
class Failure final : public std::runtime_error, public Error {
public:
    Failure(hbm_status status, int driver_code, const std::string &text)
        : std::runtime_error(text), Error(status, driver_code) {}

    const char *what() const noexcept override { return std::runtime_error::what(); }
};

// What could not be given back. The text is valid during the call only.
struct DeallocationError {
    hbm_status status;
    const char *text;
    void *address;
};

using DeallocationHandler = void (*)(const DeallocationError &);

namespace detail {

[[noreturn, gnu::cold, gnu::noinline]] inline void raise(hbm_status status, const std::string &text, int driver_code = 0) {
    if (status == HBM_OUT_OF_MEMORY) {
        throw OutOfMemory(driver_code, text);
    }
    throw Failure(status, driver_code, text);
}

// The text of what the library just answered `status` for.
inline const char *last_text(hbm_status status) noexcept {
    return hbm_last_status() == status ? hbm_last_error() : hbm_status_name(status);
}

[[noreturn, gnu::cold, gnu::noinline]] inline void raise_last(int answer) {
    const auto status = static_cast<hbm_status>(answer);
    raise(status, last_text(status), hbm_last_status() == status ? hbm_last_driver_code() : 0);
}

// More than a process has addresses: no memory, rather than a bad argument as some kinds call it.
inline constexpr std::size_t beyond_addresses = std::size_t(1) << 47;

inline hbm_status allocation_status(int answer, std::size_t bytes) noexcept {
    if (__builtin_expect(answer == HBM_INVALID_ARGUMENT && bytes >= beyond_addresses, 0)) {
        return HBM_OUT_OF_MEMORY;
    }
    return static_cast<hbm_status>(answer);
}

[[noreturn, gnu::cold, gnu::noinline]] inline void raise_allocation(int answer, std::size_t bytes) {
    if (answer != HBM_OK && allocation_status(answer, bytes) != answer) {
        raise(HBM_OUT_OF_MEMORY, "allocate: out of memory: " + std::to_string(bytes) + " bytes");
    }
    raise_last(answer);
}

inline void check(int answer) {
    if (__builtin_expect(answer != HBM_OK, 0)) {
        raise_last(answer);
    }
}

inline std::atomic<DeallocationHandler> deallocation_handler{nullptr};

// Whether the library's log says it too.
enum class Logged : bool { no, yes };

// Where nobody asked for more: a line each, of the first few, unless the option `log` is `off`.
[[gnu::cold, gnu::noinline]] inline void print_refusal(const char *text) noexcept {
    static std::atomic<int> lines_left{20};
    char option[8] = "";
    if (hbm_option_get("log", option, sizeof option, nullptr) == HBM_OK && std::strcmp(option, "off") == 0) {
        return;
    }
    if (lines_left.fetch_sub(1, std::memory_order_relaxed) > 0) {
        std::fprintf(stderr, "hbmalloc: not given back: %s\n", text);
    }
}

[[gnu::cold, gnu::noinline]] inline void report(hbm_status status, const char *text, void *address,
                                                Logged logged = Logged::no) noexcept {
    DeallocationHandler handler = deallocation_handler.load(std::memory_order_acquire);
    if (handler == nullptr) {
        if (logged == Logged::no) {
            print_refusal(text);
        }
        return;
    }
    try {
        handler(DeallocationError{status, text, address});
    } catch (...) {
        // Deallocation throws nothing, whatever the handler does.
    }
}

[[gnu::cold, gnu::noinline]] inline void report_last(int answer, void *address, Logged logged = Logged::no) noexcept {
    const auto status = static_cast<hbm_status>(answer);
    report(status, last_text(status), address, logged);
}

}  // namespace detail

// Calls `handler` from here on, on the thread concerned, for whatever could not be given back: foreign and double
// frees, wrong sizes, allocators that end before their blocks do. What could not be given back stays as it is. NULL, as
// at the beginning, for a line on standard error instead, of the first few and unless the option `log` is `off`. What a
// handler throws is dropped. Returns the handler before. Any thread.
inline DeallocationHandler set_deallocation_handler(DeallocationHandler handler) noexcept {
    return detail::deallocation_handler.exchange(handler, std::memory_order_acq_rel);
}

}  // namespace hbmalloc
