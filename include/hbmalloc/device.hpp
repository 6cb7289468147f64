// Where memory is.
#pragma once

#include <hbmalloc.h>

#include <ostream>

namespace [[gnu::visibility("default")]] hbmalloc {

enum class DeviceType : int {
    kCPU,        // memory of the host
    kCPUpinned,  // pinned memory of the host, which devices reach too
    kDEVICE,     // memory of a device
};

inline constexpr DeviceType kCPU = DeviceType::kCPU;
inline constexpr DeviceType kCPUpinned = DeviceType::kCPUpinned;
inline constexpr DeviceType kDEVICE = DeviceType::kDEVICE;

// The device whose context is current on the calling thread, as cudaSetDevice makes it; 0 where none is, or where
// there is no driver. Opens the driver.
inline int current_device() noexcept {
    int device = 0;
    return hbm_current_device(&device) == HBM_OK ? device : 0;
}

// A kind of memory and, for kDEVICE, the number of the GPU. Two are equal where the memory is of the same place:
// memory of the host has no number.
struct Device {
    DeviceType type = kCPU;
    int id = 0;

    Device() = default;

    // Of kDEVICE, the calling thread's current device at this moment; a number below 0 means that too.
    Device(DeviceType of) : Device(of, -1) {}  // NOLINT: implicit as TurboMind's

    Device(DeviceType of, int number)
        : type(of), id(of != kDEVICE ? 0 : number < 0 ? current_device() : number) {}

    friend bool operator==(const Device &a, const Device &b) noexcept {
        return a.type == b.type && (a.type != kDEVICE || a.id == b.id);
    }
    friend bool operator!=(const Device &a, const Device &b) noexcept { return !(a == b); }
};

inline const char *to_string(DeviceType type) noexcept {
    return type == kCPU ? "cpu" : type == kCPUpinned ? "cpu_pinned" : "device";
}

inline std::ostream &operator<<(std::ostream &out, const Device &device) {
    out << to_string(device.type);
    return device.type == kDEVICE ? out << ':' << device.id : out;
}

}  // namespace hbmalloc
