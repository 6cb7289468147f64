// The benchmarks, the same code for every allocator. An Allocator has
//
//     void *alloc(std::size_t bytes, Stream stream);           throws where there is no memory
//     void free(void *block, std::size_t bytes, Stream stream);
//     static void open_device(const Options &);                whatever comes before a first allocation
//     explicit Allocator(const Options &);
//
// and may be called from any thread. Nothing runs on the streams: what is measured is host time.
#pragma once

#include "driver.hpp"
#include "measure.hpp"
#include "threads.hpp"

#include <utility>

namespace bench {

constexpr std::size_t KIB = 1024, MIB = 1024 * KIB, GIB = 1024 * MIB;

inline std::string size_name(std::size_t bytes) {
    if (bytes >= MIB) return std::to_string(bytes / MIB) + " MiB";
    if (bytes >= KIB) return std::to_string(bytes / KIB) + " KiB";
    return std::to_string(bytes) + " B";
}

// Allocate and free one block, over and over; then one on each of many streams in turn.
template <typename Allocator>
void steady(const Options &options, Allocator &allocator, const Driver &driver) {
    for (std::size_t bytes : {std::size_t(512), 4 * KIB, 32 * KIB, MIB, 2 * MIB, 16 * MIB, 64 * MIB}) {
        print(options, size_name(bytes), repeat(options, [&](std::size_t pairs) {
                  const double begin = now_ns();
                  for (std::size_t i = 0; i < pairs; ++i) {
                      allocator.free(allocator.alloc(bytes, nullptr), bytes, nullptr);
                  }
                  return now_ns() - begin;
              }));
    }
    std::vector<Stream> streams;
    for (int i = 0; i < 200; ++i) streams.push_back(driver.stream());
    std::size_t at = 0;
    print(options, "4 KiB, 200 streams", repeat(options, [&](std::size_t pairs) {
              const double begin = now_ns();
              for (std::size_t i = 0; i < pairs; ++i) {
                  allocator.free(allocator.alloc(4 * KIB, streams[at]), 4 * KIB, streams[at]);
                  at = at + 1 == streams.size() ? 0 : at + 1;
              }
              return now_ns() - begin;
          }));
}

// Half of the blocks stay, with holes between them. A pair allocates one and frees the next of the
// blocks that stayed, so that the holes walk.
template <typename Allocator>
void holes(const Options &options, Allocator &allocator) {
    const std::size_t bytes = 8 * KIB;
    std::vector<void *> blocks;
    for (std::size_t i = 0; i < options.holes; ++i) {
        blocks.push_back(allocator.alloc(bytes, nullptr));
    }
    std::vector<void *> live;
    for (std::size_t i = 0; i < blocks.size(); ++i) {
        if (i % 2) allocator.free(blocks[i], bytes, nullptr);
        else live.push_back(blocks[i]);
    }
    std::size_t at = 0;
    print(options, "8 KiB", repeat(options, [&](std::size_t pairs) {
              const double begin = now_ns();
              for (std::size_t i = 0; i < pairs; ++i) {
                  void *block = allocator.alloc(bytes, nullptr);
                  allocator.free(live[at], bytes, nullptr);
                  live[at] = block;
                  at = at + 1 == live.size() ? 0 : at + 1;
              }
              return now_ns() - begin;
          }));
    for (void *block : live) allocator.free(block, bytes, nullptr);
}

using Block = std::pair<void *, std::size_t>;

inline void check_apart(std::vector<Block> blocks) {
    std::sort(blocks.begin(), blocks.end());
    for (std::size_t i = 1; i < blocks.size(); ++i) {
        if (static_cast<char *>(blocks[i - 1].first) + blocks[i - 1].second > blocks[i].first) {
            throw std::runtime_error("two live blocks overlap");
        }
    }
}

// Many live blocks of random sizes; a pair frees a random one and allocates a new one in its place.
template <typename Allocator>
void random(const Options &options, Allocator &allocator) {
    Random random(1);
    std::vector<std::size_t> sizes(1 << 14);
    for (auto &size : sizes) size = random.size(512, MIB);
    std::vector<std::uint32_t> order(1 << 18);
    for (auto &slot : order) slot = static_cast<std::uint32_t>(random.below(options.live));
    std::vector<Block> blocks;
    for (std::size_t i = 0; i < options.live; ++i) {
        const std::size_t bytes = sizes[i % sizes.size()];
        blocks.emplace_back(allocator.alloc(bytes, nullptr), bytes);
    }
    check_apart(blocks);
    std::size_t step = 0;
    print(options, std::to_string(options.live) + " live", repeat(options, [&](std::size_t pairs) {
              const double begin = now_ns();
              for (std::size_t i = 0; i < pairs; ++i, ++step) {
                  Block &block = blocks[order[step % order.size()]];
                  allocator.free(block.first, block.second, nullptr);
                  // 7919 is prime to both table lengths, so that sizes and slots do not repeat together.
                  block.second = sizes[step * 7919 % sizes.size()];
                  block.first = allocator.alloc(block.second, nullptr);
              }
              return now_ns() - begin;
          }));
    check_apart(blocks);
    for (const Block &block : blocks) allocator.free(block.first, block.second, nullptr);
}

// One thread allocates, another frees; the blocks go through a ring.
template <typename Allocator>
void remote(const Options &options, Allocator &allocator, const Driver &driver) {
    for (std::size_t bytes : {std::size_t(512), 8 * KIB}) {
        Ring ring;
        Failure failure;
        Worker consumer([&] {
            pin(options.cpus, 1);
            driver.enter();
            ring.consume([&](void *block) { failure.guard([&] { allocator.free(block, bytes, nullptr); }); });
        });
        const auto closing = at_end([&] { ring.close(); });
        print(options, size_name(bytes), repeat(options, [&](std::size_t pairs) {
                  const double begin = now_ns();
                  for (std::size_t i = 0; i < pairs; ++i) {
                      ring.push(allocator.alloc(bytes, nullptr));
                  }
                  ring.drain();
                  const double took = now_ns() - begin;
                  failure.rethrow();
                  return took;
              }));
    }
}

// What a thread of the `threads` benchmark does: pairs of mixed sizes, each block freed once `held`
// later ones are there.
template <typename Allocator>
struct Mixed {
    Allocator &allocator;
    const std::vector<std::size_t> &sizes;
    Stream stream;
    std::size_t at;
    std::vector<Block> held;

    void pair() {
        const std::size_t bytes = sizes[at % sizes.size()];
        void *block = allocator.alloc(bytes, stream);
        if (held.empty()) {
            allocator.free(block, bytes, stream);
        } else {
            Block &slot = held[at % held.size()];
            if (slot.first != nullptr) allocator.free(slot.first, slot.second, stream);
            slot = {block, bytes};
        }
        ++at;
    }

    void finish() {
        for (const Block &block : held) {
            if (block.first != nullptr) allocator.free(block.first, block.second, stream);
        }
    }
};

template <typename Allocator>
void threads(const Options &options, Allocator &allocator, const Driver &driver) {
    struct Case {
        std::size_t threads;
        bool own_streams;
        std::size_t held;
        const char *name;
    };
    const Case cases[] = {{1, true, 0, "1 thread"},   {2, true, 0, "2"},
                          {4, true, 0, "4"},          {8, true, 0, "8"},
                          {16, true, 0, "16"},        {16, true, 32, "16, 32 held each"},
                          {16, false, 0, "16 on one stream"}};
    std::vector<Stream> streams;
    for (int i = 0; i < 16; ++i) streams.push_back(driver.stream());
    Random random(2);
    std::vector<std::size_t> sizes(256);
    for (auto &size : sizes) size = random.size(512, 64 * KIB);
    for (const Case &one : cases) {
        print(options, one.name, rate(options, one.threads, [&](std::size_t thread, Turn &turn) {
                  driver.enter();
                  Mixed<Allocator> work{allocator, sizes, streams[one.own_streams ? thread : 0], 17 * thread,
                                        std::vector<Block>(one.held)};
                  turn.run([&] { work.pair(); });
                  work.finish();
              }));
    }
}

// The first block of a process, and the next. The device is open, and has served another allocator.
template <typename Allocator>
void cold(const Options &options, const Driver &driver) {
    std::uint64_t other = 0;
    Driver::check(driver.function<int (*)(std::uint64_t *, std::size_t)>("cuMemAlloc_v2")(&other, 512), "cuMemAlloc");
    Allocator::open_device(options);
    Allocator allocator(options);
    void *blocks[2] = {};
    for (int i = 0; i < 2; ++i) {
        const double begin = now_ns();
        blocks[i] = allocator.alloc(GIB, nullptr);
        print(options, i == 0 ? "first 1 GiB" : "second", Figures{{now_ns() - begin}, 1});
    }
    for (void *block : blocks) {
        driver.touch(block);
        driver.touch(static_cast<char *>(block) + GIB - 1);
    }
    check_apart({{blocks[0], GIB}, {blocks[1], GIB}});
    for (void *block : blocks) allocator.free(block, GIB, nullptr);
}

// The same pair took twice as long in the first tenths of a second of some processes, for whichever allocator.
template <typename Allocator>
void warm_up(const Options &options, Allocator &allocator) {
    const double end = now_ns() + 16 * options.batch_ms * 1e6;
    while (now_ns() < end) {
        for (int i = 0; i < 100; ++i) allocator.free(allocator.alloc(512, nullptr), 512, nullptr);
    }
}

// Runs the benchmark that the options name.
template <typename Allocator>
void run(const Options &options) {
    const Driver driver(options.driver);
    pin(options.cpus, 0);
    if (options.bench == "cold") {
        cold<Allocator>(options, driver);
        return;
    }
    Allocator::open_device(options);
    Allocator allocator(options);
    warm_up(options, allocator);
    if (options.bench == "steady") steady(options, allocator, driver);
    else if (options.bench == "holes") holes(options, allocator);
    else if (options.bench == "random") random(options, allocator);
    else if (options.bench == "remote") remote(options, allocator, driver);
    else if (options.bench == "threads") threads(options, allocator, driver);
    else throw std::runtime_error("there is no benchmark " + options.bench);
}

// A program's main: `choose(options)` runs the allocator that they name. What fails is told as a line
// of its own; then the status is 3.
template <typename Choose>
int main_with(int count, char **arguments, Choose choose) {
    Options options;
    try {
        options = parse(count, arguments);
        choose(options);
        return 0;
    } catch (const std::exception &error) {
        print_failure(options, error.what());
        return 3;
    }
}

}  // namespace bench
