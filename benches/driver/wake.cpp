// What the driver alone takes to wake memory on one device or two at once: chunks are made, mapped and
// given access to, and filled from pinned memory of the host, by a thread a device.
//
//     c++ -O2 -std=c++17 -pthread wake.cpp -lcuda -o wake && ./wake

#include <cuda.h>
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

constexpr std::size_t MIB = std::size_t{1} << 20, BYTES = 4096 * MIB, PART = 64 * MIB;
using Clock = std::chrono::steady_clock;

static void check(CUresult result, const char *call) {
    if (result != CUDA_SUCCESS) {
        std::fprintf(stderr, "%s: %d\n", call, int(result));
        std::exit(1);
    }
}
#define CHECK(call) check(call, #call)

static double since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

struct Side {
    int device;
    CUcontext context;
    CUstream stream;
    CUdeviceptr address;
    char *host;
    std::vector<CUmemGenericAllocationHandle> chunks;
    double access_seconds;
};

static Side prepare(int device) {
    Side side{};
    side.device = device;
    CHECK(cuDevicePrimaryCtxRetain(&side.context, device));
    CHECK(cuCtxSetCurrent(side.context));
    CHECK(cuStreamCreate(&side.stream, CU_STREAM_NON_BLOCKING));
    CHECK(cuMemAddressReserve(&side.address, BYTES, 0, 0, 0));
    void *host = mmap(nullptr, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (host == MAP_FAILED) std::exit(2);
    madvise(host, BYTES, MADV_HUGEPAGE);
    side.host = static_cast<char *>(host);
    for (std::size_t at = 0; at < BYTES; at += PART)
        CHECK(cuMemHostRegister(side.host + at, PART, CU_MEMHOSTREGISTER_PORTABLE));
    return side;
}

// Maps `together` chunks, fills them, and goes on with the next.
static void wake(Side &side, std::size_t chunk, std::size_t together, int reached_by) {
    CHECK(cuCtxSetCurrent(side.context));
    CUmemAllocationProp kind{};
    kind.type = CU_MEM_ALLOCATION_TYPE_PINNED;
    kind.location = {CU_MEM_LOCATION_TYPE_DEVICE, side.device};
    std::vector<CUmemAccessDesc> access(reached_by);
    for (int i = 0; i < reached_by; i++)
        access[i] = {{CU_MEM_LOCATION_TYPE_DEVICE, i ? 1 - side.device : side.device}, CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
    side.chunks.resize(BYTES / chunk);
    side.access_seconds = 0;
    for (std::size_t first = 0; first < side.chunks.size(); first += together) {
        std::size_t end = std::min(first + together, side.chunks.size());
        for (std::size_t i = first; i < end; i++) {
            CHECK(cuMemCreate(&side.chunks[i], chunk, &kind, 0));
            CHECK(cuMemMap(side.address + i * chunk, chunk, 0, side.chunks[i], 0));
        }
        auto begin = Clock::now();
        CHECK(cuMemSetAccess(side.address + first * chunk, (end - first) * chunk, access.data(), access.size()));
        side.access_seconds += since(begin);
        for (std::size_t at = first * chunk; at < end * chunk; at += std::min(chunk, PART))
            CHECK(cuMemcpyHtoDAsync(side.address + at, side.host + at, std::min(chunk, PART), side.stream));
    }
    CHECK(cuStreamSynchronize(side.stream));
}

static void sleep(Side &side) {
    CHECK(cuCtxSetCurrent(side.context));
    CHECK(cuMemUnmap(side.address, BYTES));
    for (auto chunk : side.chunks) CHECK(cuMemRelease(chunk));
}

int main() {
    CHECK(cuInit(0));
    int count = 0;
    CHECK(cuDeviceGetCount(&count));
    std::vector<Side> sides;
    for (int device = 0; device < std::min(count, 2); device++) sides.push_back(prepare(device));
    for (std::size_t devices = 1; devices <= sides.size(); devices++)
        for (int reached_by = 1; reached_by <= int(sides.size()); reached_by++)
            for (std::size_t chunk : {16 * MIB, 64 * MIB, 256 * MIB})
                for (bool all_first : {false, true}) {
                    auto begin = Clock::now();
                    std::vector<std::thread> threads;
                    for (std::size_t i = 0; i < devices; i++)
                        threads.emplace_back([&, i] { wake(sides[i], chunk, all_first ? BYTES / chunk : 1, reached_by); });
                    for (auto &thread : threads) thread.join();
                    std::printf("%zu of 4 GiB, reached by %d, chunks of %3zu MiB, %s: %5.1f GB/s, access %.0f ms\n", devices,
                                reached_by, chunk / MIB, all_first ? "all mapped first" : "one by one      ",
                                double(devices * BYTES) / since(begin) / 1e9, 1e3 * sides[0].access_seconds);
                    for (std::size_t i = 0; i < devices; i++) sleep(sides[i]);
                }
}
