// torch's own caching allocator, called from C++ so that Python's cost is not charged to it: "native", and
// "expandable" with expandable_segments:True in torch's own environment variable.
#include "replay.hpp"

#include <c10/cuda/CUDACachingAllocator.h>

namespace {

namespace caching = c10::cuda::CUDACachingAllocator;
using bench::Stream;

class Torch {
public:
    Torch() { caching::init(1); }

    void *alloc(std::size_t bytes, Stream stream) {
        return caching::raw_alloc_with_stream(bytes, static_cast<cudaStream_t>(stream));
    }

    void free(void *block, std::size_t, Stream) { caching::raw_delete(block); }

    double peak_reserved() {
        const auto stats = caching::getDeviceStats(0);
        const auto all = static_cast<std::size_t>(c10::CachingAllocator::StatType::AGGREGATE);
        return static_cast<double>(stats.reserved_bytes[all].peak);
    }

    double count(double ns) { return ns; }

    // It does not tell the driver's part.
    void tell_times(double total_ms) {
        replay::figure("host_ms", total_ms);
        replay::figure("total_ms", total_ms);
    }

    // The environment decides, so that is looked at which segments blocks came from. What was freed keeps them
    // alive. (getExpandableSegmentSizes leaves out those of the legacy stream.)
    void check(bool expandable) {
        const auto segments = caching::snapshot().segments;
        if (segments.empty()) throw std::runtime_error("it has no segments");
        for (const auto &segment : segments) {
            if (segment.is_expandable == expandable) continue;
            throw std::runtime_error(expandable ? "its segments were not expandable" : "its segments were expandable");
        }
    }
};

}  // namespace

int main(int count, char **given) {
    return replay::main_with(count, given, [](const replay::Arguments &arguments) {
        const replay::Trace trace(arguments.events);
        const bench::Driver driver(arguments.driver);
        Torch allocator;
        replay::run(trace, replay::make_streams(driver, trace), allocator);
        allocator.check(arguments.allocator == "expandable");
    });
}
