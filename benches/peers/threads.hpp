// Threads of the benchmarks: a ring from one to another, and several that work at the same time.
#pragma once

#include "measure.hpp"

#include <atomic>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace bench {

// The first exception of other threads, thrown again where it is asked for.
class Failure {
public:
    template <typename Body>
    void guard(Body body) {
        try {
            body();
        } catch (...) {
            const std::lock_guard<std::mutex> lock(mutex_);
            if (!caught_) caught_ = std::current_exception();
        }
    }

    void rethrow() {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (caught_) std::rethrow_exception(caught_);
    }

private:
    std::mutex mutex_;
    std::exception_ptr caught_;
};

// A thread that is waited for at the end of its scope.
class Worker {
public:
    template <typename Body>
    explicit Worker(Body body) : thread_(std::move(body)) {}
    Worker(const Worker &) = delete;
    Worker &operator=(const Worker &) = delete;
    ~Worker() { thread_.join(); }

private:
    std::thread thread_;
};

template <typename Body>
class AtEnd {
public:
    explicit AtEnd(Body body) : body_(std::move(body)) {}
    AtEnd(const AtEnd &) = delete;
    AtEnd &operator=(const AtEnd &) = delete;
    ~AtEnd() { body_(); }

private:
    Body body_;
};

template <typename Body>
AtEnd<Body> at_end(Body body) {
    return AtEnd<Body>(std::move(body));
}

// 1024 places between one thread that pushes and one that takes. Both look at the other's index only
// when they must, and publish their own every few blocks, so that the ring costs little beside what
// is measured.
class Ring {
public:
    void push(void *block) {
        unsigned turns = 0;
        if (tail_ - seen_head_ == PLACES) {
            published_tail_.store(tail_, std::memory_order_release);
            while (tail_ - (seen_head_ = published_head_.load(std::memory_order_acquire)) == PLACES) relax(turns);
        }
        places_[tail_++ % PLACES] = block;
        if (tail_ % BATCH == 0) published_tail_.store(tail_, std::memory_order_release);
    }

    // Waits until everything pushed was taken and worked off.
    void drain() {
        published_tail_.store(tail_, std::memory_order_release);
        unsigned turns = 0;
        while (published_head_.load(std::memory_order_acquire) != tail_) relax(turns);
    }

    void close() { closed_.store(true, std::memory_order_release); }

    // Calls `take(block)` for every block, until the ring is closed.
    template <typename Take>
    void consume(Take take) {
        std::size_t head = 0;
        unsigned turns = 0;
        for (;;) {
            const std::size_t tail = published_tail_.load(std::memory_order_acquire);
            if (tail == head) {
                if (closed_.load(std::memory_order_acquire)) return;
                relax(turns);
                continue;
            }
            while (head != tail) {
                take(places_[head++ % PLACES]);
                if (head % BATCH == 0) published_head_.store(head, std::memory_order_release);
            }
            published_head_.store(head, std::memory_order_release);
        }
    }

private:
    static constexpr std::size_t PLACES = 1024, BATCH = 16;

    // The pusher's own.
    alignas(128) std::size_t tail_ = 0;
    std::size_t seen_head_ = 0;
    alignas(128) std::atomic<std::size_t> published_tail_{0};
    alignas(128) std::atomic<std::size_t> published_head_{0};
    std::atomic<bool> closed_{false};
    alignas(128) void *places_[PLACES] = {};
};

// What a thread sees of a benchmark on several threads.
class Turn {
public:
    Turn(const std::atomic<std::size_t> &started, const std::atomic<std::size_t> &stopped,
         std::atomic<std::size_t> &working, std::atomic<std::size_t> &done, std::size_t reps)
        : started_(started), stopped_(stopped), working_(working), done_(done), reps_(reps) {}

    // Calls `pair` from every batch's start to its end, and keeps how fast that went.
    template <typename Pair>
    void run(Pair pair) {
        for (std::size_t rep = 1; rep <= reps_; ++rep) {
            unsigned turns = 0;
            while (started_.load(std::memory_order_acquire) < rep) relax(turns);
            working_.fetch_add(1);
            std::size_t pairs = 0;
            const double begin = now_ns();
            do {
                for (int i = 0; i < 64; ++i) pair();
                pairs += 64;
            } while (stopped_.load(std::memory_order_relaxed) < rep);
            batches.push_back({begin, now_ns(), pairs});
            done_.fetch_add(1);
        }
    }

    struct Batch {
        double begin, end;
        std::size_t pairs;
    };
    std::vector<Batch> batches;

private:
    const std::atomic<std::size_t> &started_, &stopped_;
    std::atomic<std::size_t> &working_, &done_;
    std::size_t reps_;
};

// Runs `work(thread, turn)` on so many threads at once. The figure of a batch is its time, from the
// first thread's begin to the last one's end, by the pairs of all threads. Work that fails is thrown.
inline Figures rate(const Options &options, std::size_t threads, const std::function<void(std::size_t, Turn &)> &work) {
    std::atomic<std::size_t> started{0}, stopped{0}, working{0}, done{0};
    const std::size_t reps = options.reps + 1;  // the first one warms up
    std::vector<Turn> turns;
    for (std::size_t i = 0; i < threads; ++i) turns.emplace_back(started, stopped, working, done, reps);
    Failure failure;
    std::atomic<bool> failed{false};
    {
        std::vector<std::unique_ptr<Worker>> workers;
        for (std::size_t i = 0; i < threads; ++i) {
            workers.push_back(std::make_unique<Worker>([&, i] {
                pin(options.cpus, i);
                failure.guard([&] {
                    const auto end = at_end([&, i] { failed = failed || turns[i].batches.size() != reps; });
                    work(i, turns[i]);
                });
            }));
        }
        for (std::size_t rep = 1; rep <= reps; ++rep) {
            const auto all = [&](const std::atomic<std::size_t> &count) {
                while (count < rep * threads && !failed) std::this_thread::sleep_for(std::chrono::microseconds(200));
            };
            started.store(rep, std::memory_order_release);
            all(working);
            std::this_thread::sleep_for(std::chrono::duration<double, std::milli>(options.batch_ms));
            stopped.store(rep, std::memory_order_release);
            all(done);
        }
    }
    failure.rethrow();
    Figures figures;
    for (std::size_t rep = 1; rep < reps; ++rep) {
        Turn::Batch all = turns.front().batches[rep];
        for (std::size_t i = 1; i < threads; ++i) {
            const Turn::Batch &one = turns[i].batches[rep];
            all = {std::min(all.begin, one.begin), std::max(all.end, one.end), all.pairs + one.pairs};
        }
        figures.ns.push_back((all.end - all.begin) / static_cast<double>(all.pairs));
        figures.pairs = all.pairs;
    }
    return figures;
}

}  // namespace bench
