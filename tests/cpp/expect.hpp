// Checks of what C++ programs are told.
#pragma once

#include "check.hpp"

#include <hbmalloc.hpp>

#include <cstring>
#include <string>
#include <type_traits>

// What the call throws, which must be an `Expected`, with this status.
template <class Expected = hbmalloc::Error, class Call>
std::string thrown(hbm_status status, Call &&call) {
    try {
        call();
    } catch (const Expected &error) {
        const auto *ours = dynamic_cast<const hbmalloc::Error *>(&error);
        CHECK(ours != nullptr);
        if (ours->status() != status) {
            std::fprintf(stderr, "'%s', not '%s': %s\n", hbm_status_name(ours->status()), hbm_status_name(status), ours->what());
            std::exit(1);
        }
        CHECK(std::strlen(ours->what()) > 5);
        return ours->what();
    }
    std::fprintf(stderr, "nothing was thrown\n");
    std::exit(1);
}

inline bool has(const std::string &text, const char *part) { return text.find(part) != std::string::npos; }

// What could not be given back while this lives.
class Refusals {
public:
    Refusals() : before_(hbmalloc::set_deallocation_handler(note)) { count_ = 0; }
    Refusals(const Refusals &) = delete;
    ~Refusals() { hbmalloc::set_deallocation_handler(before_); }

    // How many there were since the last call; `last` tells of the last one.
    int take() { return std::exchange(count_, 0); }
    static hbm_status last() { return last_; }

private:
    static void note(const hbmalloc::DeallocationError &error) {
        count_++;
        last_ = error.status;
        CHECK(error.status != HBM_OK && error.text != nullptr && error.text[0] != 0);
    }

    hbmalloc::DeallocationHandler before_;
    static inline thread_local int count_ = 0;
    static inline thread_local hbm_status last_ = HBM_OK;
};
