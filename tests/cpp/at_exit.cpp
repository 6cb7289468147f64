// What globals, statics and thread-local objects hold, given back when the process ends.
#include "expect.hpp"

#include <memory>
#include <thread>

using hbmalloc::Allocator;
using hbmalloc::Buffer;
using hbmalloc::Context;
using hbmalloc::ContextGuard;
using hbmalloc::Stream;

namespace {

// Destroyed after everything below.
struct Last {
    ~Last() {
        if (refused != 0) {
            std::fprintf(stderr, "%d were refused\n", refused);
            std::_Exit(1);
        }
        // The thread's stacks are gone, and asking is no crash.
        CHECK(Context::host_alloc());
        std::puts("at exit: fine");
        std::fflush(stdout);
    }
    int refused = 0;
};
Last last;

struct Held {
    void fill() {
        stream = Stream::create();
        event = hbmalloc::Event::create();
        event.Record(stream);
        for (bool use_default_pool : {true, false}) {
            buffers[use_default_pool] = Buffer(Allocator(stream, use_default_pool), 10000);
        }
        buffers[2] = Buffer(Allocator(hbmalloc::kCPUpinned), 100);
        arena = buffers[0].allocator().adapt<hbmalloc::Arena>();
        arena->deallocate(arena->allocate(1000), 1000);
        arena->iter();
        guard = std::make_unique<ContextGuard>(stream, arena);
    }

    Stream stream;
    hbmalloc::Event event;
    Buffer buffers[3];
    hbmalloc::AllocatorOf<hbmalloc::Arena> arena;
    std::unique_ptr<ContextGuard> guard;
};

Held global;
thread_local Held of_thread;

Held &made_late() {
    static Held late;
    return late;
}

}  // namespace

int main() {
    hbmalloc::set_deallocation_handler([](const hbmalloc::DeallocationError &error) {
        // A guard that is static ends after the thread's stacks did.
        if (!std::strstr(error.text, "ContextGuard")) {
            std::fprintf(stderr, "%s\n", error.text);
            last.refused++;
        }
    });
    global.fill();
    of_thread.fill();
    std::thread([] { of_thread.fill(); }).join();
    CHECK(last.refused == 0);
    made_late().fill();
}
