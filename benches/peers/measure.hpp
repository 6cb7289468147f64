// What every benchmark program shares: its arguments, where threads run, repeated batches, and the
// line of JSON that a case ends in.
#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sched.h>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace bench {

struct Options {
    std::string allocator;                  // which of the program's allocators
    std::string bench;                      // steady, holes, random, remote, threads or cold
    std::string driver = "libcuda.so.1";    // the GPU driver's file
    std::string library;                    // what the program opens at run time: ours, or the CUDA runtime
    std::size_t reps = 7;                   // batches a case
    double batch_ms = 30;                   // length of a batch
    std::size_t holes = 10000;              // blocks before every other one is freed
    std::size_t live = 100000;              // live blocks of random sizes
    std::vector<int> cpus;                  // the processors that threads are kept on
};

// The processors this process may use: one of every core first, then the second threads of cores.
inline std::vector<int> processors() {
    cpu_set_t allowed;
    CPU_ZERO(&allowed);
    std::vector<int> first, second;
    if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) {
        for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
            if (!CPU_ISSET(cpu, &allowed)) continue;
            std::ifstream file("/sys/devices/system/cpu/cpu" + std::to_string(cpu) +
                               "/topology/thread_siblings_list");
            int sibling = cpu;
            file >> sibling;
            (sibling == cpu ? first : second).push_back(cpu);
        }
    }
    first.insert(first.end(), second.begin(), second.end());
    return first;
}

inline Options parse(int count, char **arguments) {
    Options options;
    options.cpus = processors();
    for (int i = 1; i + 1 < count; i += 2) {
        const std::string name = arguments[i];
        const char *value = arguments[i + 1];
        if (name == "--allocator") options.allocator = value;
        else if (name == "--bench") options.bench = value;
        else if (name == "--driver") options.driver = value;
        else if (name == "--library") options.library = value;
        else if (name == "--reps") options.reps = std::strtoul(value, nullptr, 10);
        else if (name == "--batch-ms") options.batch_ms = std::strtod(value, nullptr);
        else if (name == "--holes") options.holes = std::strtoul(value, nullptr, 10);
        else if (name == "--live") options.live = std::strtoul(value, nullptr, 10);
        else throw std::runtime_error("unknown argument " + name);
    }
    if (count % 2 == 0 || options.reps == 0 || options.holes < 2 || options.live == 0) {
        throw std::runtime_error("arguments come in pairs: --allocator NAME --bench NAME [--reps N] ...");
    }
    return options;
}

// Keeps the calling thread on the processor of that place in the list; threads past its end share.
inline void pin(const std::vector<int> &cpus, std::size_t place) {
    if (cpus.empty()) return;
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(cpus[place % cpus.size()], &one);
    sched_setaffinity(0, sizeof one, &one);
}

// One turn of a loop that waits for another thread.
inline void relax(unsigned &turns) {
    if (++turns % 1024 == 0) {
        std::this_thread::yield();
        return;
    }
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

inline double now_ns() {
    return static_cast<double>(std::chrono::duration_cast<std::chrono::nanoseconds>(
                                   std::chrono::steady_clock::now().time_since_epoch())
                                   .count());
}

// The same numbers on every machine and for every allocator.
class Random {
public:
    explicit Random(std::uint64_t seed) : state_(seed) {}

    std::uint64_t next() {
        state_ += 0x9e3779b97f4a7c15u;
        std::uint64_t z = state_;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        return z ^ (z >> 31);
    }

    std::size_t below(std::size_t bound) { return static_cast<std::size_t>(next() % bound); }

    // A size whose logarithm is uniform.
    std::size_t size(std::size_t least, std::size_t most) {
        const double share = static_cast<double>(next() >> 11) / 9007199254740992.0;
        return static_cast<std::size_t>(static_cast<double>(least) *
                                        std::pow(static_cast<double>(most) / static_cast<double>(least), share));
    }

private:
    std::uint64_t state_;
};

// Nanoseconds a pair, one figure a batch, and how many pairs the last batch had.
struct Figures {
    std::vector<double> ns;
    std::size_t pairs = 0;
};

// Runs `batch(pairs)`, which answers the nanoseconds it took, until a batch is long enough to be
// measured, and then as often as asked for.
template <typename Batch>
Figures repeat(const Options &options, Batch batch) {
    Figures figures;
    const double wanted = options.batch_ms * 1e6;
    std::size_t pairs = 16;
    for (;;) {
        const double took = batch(pairs);
        if (took >= wanted / 4 || pairs > (std::size_t(1) << 40)) {
            const double fitted = static_cast<double>(pairs) * wanted / std::max(took, 1.0);
            pairs = std::max<std::size_t>(16, static_cast<std::size_t>(fitted));
            break;
        }
        pairs *= 4;
    }
    figures.pairs = pairs;
    for (std::size_t rep = 0; rep < options.reps; ++rep) {
        figures.ns.push_back(batch(pairs) / static_cast<double>(pairs));
    }
    return figures;
}

inline std::string quoted(const std::string &text) {
    std::string out = "\"";
    for (char c : text) {
        if (c == '"' || c == '\\') out += '\\';
        out += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
    }
    return out + '"';
}

inline void print(const Options &options, const std::string &name, Figures figures) {
    std::sort(figures.ns.begin(), figures.ns.end());
    const std::size_t middle = figures.ns.size() / 2;
    const double median = figures.ns.size() % 2 ? figures.ns[middle] : (figures.ns[middle - 1] + figures.ns[middle]) / 2;
    std::printf("{\"allocator\":%s,\"bench\":%s,\"case\":%s,\"reps\":%zu,\"pairs\":%zu,"
                "\"ns_median\":%.2f,\"ns_min\":%.2f,\"ns_max\":%.2f}\n",
                quoted(options.allocator).c_str(), quoted(options.bench).c_str(), quoted(name).c_str(),
                figures.ns.size(), figures.pairs, median, figures.ns.front(), figures.ns.back());
    std::fflush(stdout);
}

inline void print_failure(const Options &options, const std::string &reason) {
    std::printf("{\"allocator\":%s,\"bench\":%s,\"skipped\":%s}\n", quoted(options.allocator).c_str(),
                quoted(options.bench).c_str(), quoted(reason.substr(0, 300)).c_str());
    std::fflush(stdout);
}

}  // namespace bench
