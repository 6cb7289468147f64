// Failures of the entry points in a process with torch (its stand-in), without the library of torch that
// knows the memory error (NO_MEMORY_ERROR), and without torch at all (NO_TORCH).
#include "check.hpp"
#ifndef NO_TORCH
#include "fake_torch/exception.h"
#endif

#include <atomic>
#include <cstring>
#include <exception>
#include <functional>
#include <stdexcept>
#include <string>
#include <thread>
#include <unistd.h>
#include <vector>

namespace {

constexpr std::size_t TOO_MUCH = std::size_t(1) << 39;

// As torch keeps the functions that it loaded by name.
using Malloc = std::function<void *(std::size_t, int, void *)>;

const Malloc ALL[] = {hbm_malloc, device_malloc, async_malloc, vmm_malloc, pool_malloc};
constexpr std::size_t COUNT = sizeof ALL / sizeof ALL[0];

bool contains(const char *text, const char *part) { return std::strstr(text, part) != nullptr; }

void works_again(const Malloc &allocate) {
    void *block = allocate(1 << 20, 0, nullptr);
    CHECK(block != nullptr);
    hbm_free(block, 1 << 20, 0, nullptr);
}

// What never raises: nothing asked for, and what torch's own retry calls.
void null_where_torch_wants_null() {
    for (const Malloc &allocate : ALL) {
        CHECK(allocate(0, 0, nullptr) == nullptr);
    }
    for (auto allocate : {hbm_segment_malloc, device_segment_malloc, managed_segment_malloc,
                          async_segment_malloc, vmm_segment_malloc, pool_segment_malloc}) {
        CHECK(allocate(std::size_t(1) << 60, 0, nullptr) == nullptr);
        CHECK(contains(hbm_last_error(), "out of memory"));
    }
}

#ifdef NO_TORCH

void failures() {
    for (const Malloc &allocate : ALL) {
        CHECK(allocate(TOO_MUCH, 0, nullptr) == nullptr);
        CHECK(contains(hbm_last_error(), "out of memory"));
        // The pool, which is also the default, does not even ask for more than the device has.
        bool asks = &allocate != &ALL[0] && &allocate != &ALL[COUNT - 1];
        CHECK(hbm_last_driver_code() == (asks ? 2 : 0));
        CHECK(allocate(1000, 99, nullptr) == nullptr);
        CHECK(contains(hbm_last_error(), "no device 99"));
        works_again(allocate);
    }
}

#else

struct NoteEnd {
    bool *ended;
    ~NoteEnd() { *ended = true; }
};

template <class Expected>
std::string raised(const Malloc &allocate, std::size_t bytes, int device) {
    bool ended = false;
    try {
        NoteEnd note{&ended};
        allocate(bytes, device, nullptr);
    } catch (const Expected &error) {
        CHECK(ended);
        return error.what();
    } catch (...) {
        CHECK(!"the exception expected");
    }
    CHECK(!"an exception at all");
    std::exit(1);
}

#ifdef NO_MEMORY_ERROR
using MemoryError = std::runtime_error;
#else
using MemoryError = c10::OutOfMemoryError;
#endif

void failures() {
    for (const Malloc &allocate : ALL) {
        std::string text = raised<MemoryError>(allocate, TOO_MUCH, 0);
        CHECK(text.rfind("CUDA out of memory. ", 0) == 0);
        CHECK(contains(text.c_str(), "549755813888 bytes asked for"));
        CHECK(contains(text.c_str(), hbm_last_error()));
        works_again(allocate);

        text = raised<std::runtime_error>(allocate, 1000, 99);
        CHECK(contains(text.c_str(), "no device 99"));
        text = raised<std::runtime_error>(allocate, 1000, -1);
        works_again(allocate);
        // A size that no device could have is also a matter of memory.
        raised<MemoryError>(allocate, std::size_t(-1), 0);
    }
    CHECK(c10::live_errors() == 0);
}

#ifndef NO_MEMORY_ERROR
void it_is_torchs_own_class() {
    // By its bases, as pybind11 and torch's own handlers catch it.
    std::string text = raised<c10::Error>(ALL[3], TOO_MUCH, 0);
    CHECK(contains(text.c_str(), "raised from allocate at hbmalloc:0"));
    raised<std::exception>(ALL[3], TOO_MUCH, 0);
    try {
        ALL[3](TOO_MUCH, 0, nullptr);
        CHECK(!"reached");
    } catch (c10::Error &error) {
        CHECK(contains(error.what_without_backtrace(), "CUDA out of memory"));
        CHECK(!contains(error.what_without_backtrace(), "raised from"));
        CHECK(dynamic_cast<c10::OutOfMemoryError *>(&error) != nullptr);
        // torch's own exception, thrown while ours is being handled.
        try {
            torch_out_of_memory("torch's own");
        } catch (const c10::OutOfMemoryError &own) {
            CHECK(typeid(own) == typeid(error));
        }
    }
    // Kept, and thrown again on another thread, as autograd does.
    std::exception_ptr kept;
    try {
        ALL[3](TOO_MUCH, 0, nullptr);
    } catch (...) {
        kept = std::current_exception();
    }
    bool caught = false;
    std::thread([&] {
        try {
            std::rethrow_exception(kept);
        } catch (const c10::OutOfMemoryError &) {
            caught = true;
        }
    }).join();
    CHECK(caught && c10::live_errors() == 1);
    kept = nullptr;
    CHECK(c10::live_errors() == 0);
}
#endif

long resident_pages() {
    long pages = 0, resident = 0;
    std::FILE *file = std::fopen("/proc/self/statm", "r");
    CHECK(file != nullptr && std::fscanf(file, "%ld %ld", &pages, &resident) == 2);
    std::fclose(file);
    return resident;
}

void nothing_leaks() {
    auto rounds = [](int count) {
        for (int i = 0; i < count; i++) {
            // The pool takes what the device has before it gives up.
            raised<MemoryError>(ALL[i % 20 == 0 ? 4 : 3], TOO_MUCH + std::size_t(i), 0);
            raised<std::runtime_error>(ALL[3 + i % 2], 1000, 100 + i);
        }
    };
    rounds(500);
    long before = resident_pages();
    rounds(10000);
    long grown = (resident_pages() - before) * sysconf(_SC_PAGESIZE);
    // An exception object has 1 KiB and its text some 200 bytes: lost, they would show as megabytes.
    std::printf("10,000 rounds: resident memory grew by %ld bytes\n", grown);
    CHECK(grown < 256 * 1024);
    CHECK(c10::live_errors() == 0);
}

void destructors_of_threads_run() {
    std::vector<std::thread> threads;
    static bool ended[8][2];
    for (int t = 0; t < 8; t++) {
        threads.emplace_back([t] {
            thread_local NoteEnd at_exit{&ended[t][0]};
            NoteEnd on_stack{&ended[t][1]};
            for (int i = 0; i < 100; i++) {
                raised<MemoryError>(ALL[t % COUNT], TOO_MUCH, 0);
                works_again(ALL[t % COUNT]);
            }
            CHECK(at_exit.ended != nullptr);
        });
    }
    for (std::thread &thread : threads) {
        thread.join();
    }
    for (auto &both : ended) {
        CHECK(both[0] && both[1]);
    }
    CHECK(c10::live_errors() == 0);
}

#endif

// How often the log told torch to set its hooks.
std::atomic<int> told_of_hooks{0};

void hear(int32_t, const char *, const char *message, void *) {
    told_of_hooks += contains(message, "torch loaded the allocator without its hooks");
}

}  // namespace

int main() {
    CHECK(hbm_log_set_callback(hear, nullptr) == HBM_OK);
    null_where_torch_wants_null();
    failures();
#ifdef NO_TORCH
    CHECK(told_of_hooks == 0);
#else
    CHECK(told_of_hooks == 1);
#endif
#ifndef NO_TORCH
#ifndef NO_MEMORY_ERROR
    it_is_torchs_own_class();
#endif
    destructors_of_threads_run();
    nothing_leaks();
#endif
    std::puts("exceptions: fine");
}
