// Memory of a device by the C++ header: what was written to each block of an arena, of whatever upstream, is found there,
// beside spills, growth and refusals. Needs no header of CUDA's; prints a line for each upstream.
#include <hbmalloc.hpp>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

#define CHECK(condition)                                                                                   \
    do {                                                                                                   \
        if (!(condition)) {                                                                                \
            std::fprintf(stderr, "%s:%d: not so: %s; %s\n", __FILE__, __LINE__, #condition, hbm_last_error()); \
            std::exit(1);                                                                                  \
        }                                                                                                  \
    } while (0)

using hbmalloc::Allocator;
using hbmalloc::Kind;
using hbmalloc::Stream;

namespace {

struct Piece {
    void *address;
    std::size_t bytes;
    unsigned char mark;
};

// Writes each block's mark on the stream, by way of pinned memory that stays until the stream has read it.
class Marks {
public:
    explicit Marks(Stream stream) : stream_(std::move(stream)), pinned_(Kind::pinned) {}

    void write(const Piece &piece) {
        hbmalloc::Buffer source(pinned_, piece.bytes);
        std::memset(source.data(), piece.mark, piece.bytes);
        copy(piece.address, source.data(), piece.bytes, HBM_COPY_TO_DEVICE);
        sources_.push_back(std::move(source));
    }

    bool holds(const Piece &piece) {
        hbmalloc::Buffer found(pinned_, piece.bytes);
        copy(found.data(), piece.address, piece.bytes, HBM_COPY_TO_HOST);
        stream_.Sync();
        sources_.clear();
        const auto *bytes = static_cast<const unsigned char *>(found.data());
        for (std::size_t i = 0; i < piece.bytes; ++i) {
            if (bytes[i] != piece.mark) return false;
        }
        return true;
    }

private:
    void copy(void *to, const void *from, std::size_t bytes, int direction) {
        void *destinations[] = {to};
        const void *origins[] = {from};
        CHECK(hbm_memcpy_batch(destinations, origins, &bytes, 1, direction, stream_.device(), stream_.handle()) == HBM_OK);
    }

    Stream stream_;
    Allocator pinned_;
    std::vector<hbmalloc::Buffer> sources_;
};

// Blocks of many sizes come and go in the arena's order for some steps, and the region grows to what they need.
void steps(const Allocator &upstream, const Stream &stream) {
    auto arena = upstream.adapt<hbmalloc::Arena>();
    Marks marks(stream);
    std::vector<Piece> pieces;
    unsigned seed = 7;
    for (int step = 0; step < 6; ++step) {
        for (int i = 0; i < 60; ++i) {
            seed = seed * 1664525u + 1013904223u;
            if (pieces.size() > 3 && seed % 3 == 0) {
                CHECK(marks.holds(pieces.back()));
                arena->deallocate(pieces.back().address, static_cast<ssize_t>(pieces.back().bytes));
                pieces.pop_back();
                continue;
            }
            const std::size_t bytes = 1 + (seed >> 8) % (step % 2 ? 3 << 20 : 40 << 10);
            Piece piece{arena->allocate(static_cast<ssize_t>(bytes)), bytes, static_cast<unsigned char>(seed >> 24)};
            CHECK(reinterpret_cast<std::uintptr_t>(piece.address) % 256 == 0);
            marks.write(piece);
            pieces.push_back(piece);
        }
        for (const Piece &piece : pieces) CHECK(marks.holds(piece));
        if (pieces.size() > 1) {
            // Not the last one, and not what it is: nothing changes.
            const Piece &first = pieces.front();
            CHECK(hbm_allocator_deallocate_sized(arena->native(), first.address, first.bytes + 1, stream.handle()) != HBM_OK);
            CHECK(marks.holds(first));
        }
        for (; !pieces.empty(); pieces.pop_back()) {
            arena->deallocate(pieces.back().address, static_cast<ssize_t>(pieces.back().bytes));
        }
        arena->iter();
        const hbm_arena_stats_t stats = arena->arena_stats();
        CHECK(stats.blocks == 0 && stats.spilled_blocks == 0 && stats.region_bytes >= stats.largest_need);
    }
    const auto spills = arena->arena_stats().spills;
    CHECK(spills > 0);
    // What was needed before is there by now.
    std::vector<void *> again;
    for (int i = 0; i < 20; ++i) again.push_back(arena->allocate(40 << 10));
    CHECK(arena->arena_stats().spills == spills);
    for (; !again.empty(); again.pop_back()) arena->deallocate(again.back(), 40 << 10);
}

void of_kind(const char *name, Kind kind, const Stream &stream) {
    hbmalloc::Options options;
    options.stream = stream;
    options.device = stream.device();
    Allocator upstream(kind, options);
    steps(upstream, stream);
    CHECK(upstream.stats().requested == 0);
    std::printf("an arena over %s: every block held what was written to it\n", name);
}

}  // namespace

int main() {
    const Stream stream = Stream::create();
    of_kind("the pool", Kind::pool, stream);
    of_kind("device memory", Kind::device, stream);
    of_kind("the driver's stream-ordered pool", Kind::stream_ordered, stream);
    of_kind("vmm chunks", Kind::vmm, stream);
    // Functions of the program, which know nothing of streams.
    Allocator device(Kind::device);
    auto functions = hbmalloc::FunctionAllocator::Create(
        [&](ssize_t bytes) { return device.allocate(static_cast<std::size_t>(bytes)); },
        [&](void *address, ssize_t bytes) { device.deallocate(address, static_cast<std::size_t>(bytes)); }, device->device());
    steps(functions, stream);
    std::printf("an arena over functions: every block held what was written to it\n");
    CHECK(device.stats().requested == 0);
}
