// The CUDA driver, opened at run time: a benchmark needs a context, streams, and something to check
// with that a block is mapped. Declared by hand, so that no CUDA header is needed to build.
#pragma once

#include <cstddef>
#include <cstdint>
#include <dlfcn.h>
#include <stdexcept>
#include <string>

namespace bench {

using Stream = void *;

// A function of an opened library, or an error that says what is missing.
template <typename Function>
Function symbol(void *library, const char *name) {
    void *address = dlsym(library, name);
    if (address == nullptr) {
        throw std::runtime_error(std::string(name) + " is missing");
    }
    return reinterpret_cast<Function>(address);
}

inline void *open_library(const std::string &path) {
    void *library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
        throw std::runtime_error(dlerror());
    }
    return library;
}

class Driver {
public:
    explicit Driver(const std::string &path) : library_(open_library(path)) {
        check(symbol<int (*)(unsigned)>(library_, "cuInit")(0), "cuInit");
        int device = 0;
        check(symbol<int (*)(int *, int)>(library_, "cuDeviceGet")(&device, 0), "cuDeviceGet");
        check(symbol<int (*)(void **, int)>(library_, "cuDevicePrimaryCtxRetain")(&context_, device),
              "cuDevicePrimaryCtxRetain");
        set_current_ = symbol<int (*)(void *)>(library_, "cuCtxSetCurrent");
        enter();
    }

    // Makes the device's primary context the calling thread's.
    void enter() const { check(set_current_(context_), "cuCtxSetCurrent"); }

    Stream stream() const {
        const unsigned non_blocking = 1;
        Stream made = nullptr;
        check(function<int (*)(Stream *, unsigned)>("cuStreamCreate")(&made, non_blocking), "cuStreamCreate");
        return made;
    }

    // Writes one byte on the device and waits for it: fails where nothing is mapped.
    void touch(void *address) const {
        auto fill = function<int (*)(std::uint64_t, unsigned char, std::size_t)>("cuMemsetD8_v2");
        check(fill(reinterpret_cast<std::uint64_t>(address), 1, 1), "cuMemsetD8");
        check(function<int (*)()>("cuCtxSynchronize")(), "cuCtxSynchronize");
    }

    template <typename Function>
    Function function(const char *name) const {
        return symbol<Function>(library_, name);
    }

    static void check(int code, const char *call) {
        if (code != 0) {
            throw std::runtime_error(std::string(call) + " answered " + std::to_string(code));
        }
    }

private:
    void *library_;
    void *context_ = nullptr;
    int (*set_current_)(void *) = nullptr;
};

}  // namespace bench
