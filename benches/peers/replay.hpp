// Replays a recorded program through an allocator that is not ours, and tells figures the way
// `hbmalloc replay` takes them in: a line each on standard output. Timed as our own backends are: by
// the processor's counter where it runs at one speed, with the clock's own cost taken off.
#pragma once

#include "driver.hpp"

#include <algorithm>
#include <chrono>
#include <cstdarg>
#include <cstdio>
#include <csignal>
#include <sys/prctl.h>
#include <vector>
#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif

namespace replay {

// What `hbmalloc replay` writes for its peers: words of 64 bits in the machine's order, first these.
struct Header {
    static constexpr std::uint64_t MAGIC = 0x3159414c50455200;
    std::uint64_t magic, streams, blocks, events, peak_requested;
};

struct Block {
    std::uint64_t bytes, stream;
};

struct Trace {
    Header header;
    // Twice the block's number, and 1 more where it is freed.
    std::vector<std::uint64_t> events;
    std::vector<Block> blocks;

    explicit Trace(const char *path) {
        std::FILE *file = std::fopen(path, "rb");
        if (file == nullptr) throw std::runtime_error(std::string("cannot open ") + path);
        bool complete = std::fread(&header, sizeof header, 1, file) == 1 && header.magic == Header::MAGIC;
        if (complete) {
            events.resize(header.events);
            blocks.resize(header.blocks);
            complete = std::fread(events.data(), sizeof(std::uint64_t), events.size(), file) == events.size() &&
                       std::fread(blocks.data(), sizeof(Block), blocks.size(), file) == blocks.size();
        }
        std::fclose(file);
        if (!complete) throw std::runtime_error(std::string("no complete list of events: ") + path);
    }
};

// The trace's streams, in the context that the CUDA runtime uses too; the first is the legacy stream.
inline std::vector<bench::Stream> make_streams(const bench::Driver &driver, const Trace &trace) {
    std::vector<bench::Stream> streams(trace.header.streams, nullptr);
    for (std::size_t at = 1; at < streams.size(); ++at) streams[at] = driver.stream();
    return streams;
}

// A line to the parent, at once.
__attribute__((format(printf, 1, 2))) inline void tell(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    std::vprintf(format, arguments);
    va_end(arguments);
    std::putchar('\n');
    std::fflush(stdout);
}

inline void figure(const char *name, double value) { tell("figure %s %.17g", name, value); }

inline std::uint64_t system_ns() {
    auto now = std::chrono::steady_clock::now().time_since_epoch();
    return std::chrono::duration_cast<std::chrono::nanoseconds>(now).count();
}

class Clock {
public:
    Clock() : steady_(is_steady()) {
        if (steady_) {
            std::uint64_t started = system_ns(), first = now(), ended = started;
            while (ended - started < 20'000'000) ended = system_ns();
            std::uint64_t ticks = now() - first;
            ns_a_tick_ = static_cast<double>(ended - started) / static_cast<double>(std::max<std::uint64_t>(ticks, 1));
        }
        std::vector<std::uint64_t> empty(10'001);
        for (auto &ticks : empty) {
            std::uint64_t before = now();
            ticks = now() - before;
        }
        std::nth_element(empty.begin(), empty.begin() + empty.size() / 2, empty.end());
        own_ticks_ = empty[empty.size() / 2];
    }

    // A reading, after everything before it has been done.
    std::uint64_t now() const {
#if defined(__x86_64__)
        if (steady_) {
            _mm_lfence();
            return __rdtsc();
        }
#elif defined(__aarch64__)
        std::uint64_t ticks;
        asm volatile("isb; mrs %0, cntvct_el0" : "=r"(ticks)::"memory");
        return ticks;
#endif
        return system_ns();
    }

    // Nanoseconds between two readings, less what reading costs.
    double between(std::uint64_t before, std::uint64_t after) const {
        const std::uint64_t ticks = after - before;
        return ticks > own_ticks_ ? static_cast<double>(ticks - own_ticks_) * ns_a_tick_ : 0.0;
    }

    double own_cost() const { return static_cast<double>(own_ticks_) * ns_a_tick_; }

private:
    static bool is_steady() {
#if defined(__x86_64__)
        unsigned a = 0, b = 0, c = 0, d = 0;
        return __get_cpuid(0x8000'0007, &a, &b, &c, &d) != 0 && (d & (1u << 8)) != 0;
#elif defined(__aarch64__)
        return true;
#else
        return false;
#endif
    }

    bool steady_;
    double ns_a_tick_ = 1.0;
    std::uint64_t own_ticks_ = 0;
};

// An Allocator has
//
//     void *alloc(std::size_t bytes, Stream stream);           throws or answers null where it fails
//     void free(void *block, std::size_t bytes, Stream stream);
//     double count(double ns);                                  what to count for a call that took so long
//     double peak_reserved();                                   after the last event
//     void tell_times(double total_ms);                         how the time divides, as far as it is known
template <typename Allocator>
void run(const Trace &trace, const std::vector<bench::Stream> &streams, Allocator &allocator) {
    const Clock clock;
    std::vector<void *> addresses(trace.blocks.size());
    std::vector<double> spent(trace.blocks.size()), pairs;
    pairs.reserve(trace.blocks.size());
    double total_ns = 0;
    std::uint64_t told = system_ns();
    for (std::size_t at = 0; at < trace.events.size(); ++at) {
        if (at % 256 == 0 && system_ns() - told > 100'000'000) {
            told = system_ns();
            tell("progress %zu", at);
        }
        const std::size_t number = trace.events[at] / 2;
        const bool frees = trace.events[at] % 2 == 1;
        const Block block = trace.blocks.at(number);
        const bench::Stream stream = streams.at(block.stream);
        void *address = addresses[number];
        std::uint64_t before, after;
        if (frees) {
            before = clock.now();
            allocator.free(address, block.bytes, stream);
            after = clock.now();
        } else {
            before = clock.now();
            address = allocator.alloc(block.bytes, stream);
            after = clock.now();
            if (address == nullptr) throw std::runtime_error("out of memory");
            addresses[number] = address;
        }
        const double nanoseconds = allocator.count(clock.between(before, after));
        total_ns += nanoseconds;
        spent[number] += nanoseconds;
        if (frees) pairs.push_back(spent[number]);
    }
    figure("peak_requested", static_cast<double>(trace.header.peak_requested));
    figure("peak_reserved", allocator.peak_reserved());
    std::sort(pairs.begin(), pairs.end());
    if (!pairs.empty()) {
        figure("pair_ns_p50", pairs[pairs.size() / 2]);
        figure("pair_ns_p99", pairs[pairs.size() * 99 / 100]);
        figure("pair_ns_max", pairs.back());
    }
    figure("pairs", static_cast<double>(pairs.size()));
    figure("clock_ns", clock.own_cost());
    allocator.tell_times(total_ns / 1e6);
    tell("done");
}

// What a program is given: its allocator's name, the file of events, and the driver's.
struct Arguments {
    std::string allocator;
    const char *events;
    const char *driver;
};

// Runs a program; what goes wrong is told.
template <typename Body>
int main_with(int count, char **given, Body body) {
    // Whoever stops the parent stops this.
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    try {
        if (count != 4) throw std::runtime_error("usage: PROGRAM ALLOCATOR EVENTS DRIVER");
        body(Arguments{given[1], given[2], given[3]});
        return 0;
    } catch (const std::exception &error) {
        // torch's go on with a trace of its own calls.
        const std::string text = error.what();
        tell("problem %s", text.substr(0, text.find('\n')).c_str());
        return 1;
    }
}

}  // namespace replay
