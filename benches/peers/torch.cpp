// PyTorch's native allocator from C++, as its operators call it: "native", and "expandable" with
// PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True in the environment.
#include "loops.hpp"

#include <c10/cuda/CUDACachingAllocator.h>

namespace {

namespace caching = c10::cuda::CUDACachingAllocator;
using bench::Options;
using bench::Stream;

class Native {
public:
    static void open_device(const Options &) {}

    explicit Native(const Options &options) {
        caching::init(1);
        if (options.bench != "cold") check(options.allocator == "expandable");
    }

    void *alloc(std::size_t bytes, Stream stream) {
        return caching::raw_alloc_with_stream(bytes, static_cast<cudaStream_t>(stream));
    }

    void free(void *block, std::size_t, Stream) { caching::raw_delete(block); }

private:
    // The environment decides, so that is looked at which segments a block came from.
    void check(bool expandable) {
        void *block = alloc(512, nullptr);
        for (const auto &segment : caching::snapshot().segments) {
            if (segment.is_expandable == expandable) continue;
            throw std::runtime_error(expandable ? "its segments are not expandable" : "its segments are expandable");
        }
        free(block, 512, nullptr);
    }
};

}  // namespace

int main(int count, char **arguments) { return bench::main_with(count, arguments, bench::run<Native>); }
