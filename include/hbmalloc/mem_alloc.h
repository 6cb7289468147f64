// The functions of LMCache's mem_alloc under their own names, for C++ programs: memory of the host, pinned, on a
// node, from huge pages or shared under a name. Each is a call of hbmalloc.h, where it is described; those that fail
// throw std::runtime_error with the library's own text.
#pragma once

#include <hbmalloc.h>

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace hbmalloc::lmcache {

namespace detail {

inline void check(int status) {
    if (status != HBM_OK) {
        const char *text = hbm_last_error();
        throw std::runtime_error(text != nullptr ? text : hbm_status_name(status));
    }
}

inline std::uintptr_t given(std::uintptr_t address) {
    if (address == 0) {
        check(hbm_last_status());
    }
    return address;
}

inline const char *name_of(const std::string &name) {
    if (name.find('\0') != std::string::npos) {
        throw std::runtime_error("a name of shared memory holds no zero character");
    }
    return name.c_str();
}

}  // namespace detail

// `flags` are those of cudaHostAlloc.
inline std::uintptr_t alloc_pinned_ptr(std::size_t size, unsigned int flags) {
    return detail::given(hbm_alloc_pinned_ptr(size, flags));
}

inline void free_pinned_ptr(std::uintptr_t ptr) { detail::check(hbm_free_pinned_ptr(ptr)); }

// Not pinned.
inline std::uintptr_t alloc_numa_ptr(std::size_t size, int node) {
    return detail::given(hbm_alloc_numa_ptr(size, node));
}

inline void free_numa_ptr(std::uintptr_t ptr, std::size_t size) { detail::check(hbm_free_numa_ptr(ptr, size)); }

inline std::uintptr_t alloc_pinned_numa_ptr(std::size_t size, int node) {
    return detail::given(hbm_alloc_pinned_numa_ptr(size, node));
}

inline void free_pinned_numa_ptr(std::uintptr_t ptr, std::size_t size) {
    detail::check(hbm_free_pinned_numa_ptr(ptr, size));
}

inline std::uintptr_t alloc_hugepage_pinned_ptr(std::size_t size, unsigned int flags) {
    return detail::given(hbm_alloc_hugepage_pinned_ptr(size, flags));
}

inline void free_hugepage_pinned_ptr(std::uintptr_t ptr, std::size_t size) {
    detail::check(hbm_free_hugepage_pinned_ptr(ptr, size));
}

inline std::uintptr_t alloc_hugepage_pinned_numa_ptr(std::size_t size, int node) {
    return detail::given(hbm_alloc_hugepage_pinned_numa_ptr(size, node));
}

inline void free_hugepage_pinned_numa_ptr(std::uintptr_t ptr, std::size_t size) {
    detail::check(hbm_free_hugepage_pinned_numa_ptr(ptr, size));
}

inline std::uintptr_t alloc_shm_pinned_ptr(std::size_t size, const std::string &name) {
    return detail::given(hbm_alloc_shm_pinned_ptr(size, detail::name_of(name)));
}

inline void free_shm_pinned_ptr(std::uintptr_t ptr, std::size_t size, const std::string &name) {
    detail::check(hbm_free_shm_pinned_ptr(ptr, size, detail::name_of(name)));
}

// Copies `sizes[i]` bytes from `src[i]` to `dst[i]`, on the host, as if one piece after another; by several threads where
// there is much of it.
inline void batched_memcpy(const std::vector<std::uintptr_t> &src, const std::vector<std::uintptr_t> &dst,
                           const std::vector<std::size_t> &sizes) {
    if (src.size() != dst.size() || src.size() != sizes.size()) {
        throw std::invalid_argument("batched_memcpy: " + std::to_string(src.size()) + " sources, " +
                                    std::to_string(dst.size()) + " destinations and " +
                                    std::to_string(sizes.size()) + " sizes: there must be as many of each");
    }
    static_assert(sizeof(std::uintptr_t) == sizeof(void *), "addresses are passed as they are");
    detail::check(hbm_memcpy_batch(reinterpret_cast<void *const *>(dst.data()),
                                   reinterpret_cast<const void *const *>(src.data()), sizes.data(), sizes.size(),
                                   HBM_COPY_ON_HOST, 0, nullptr));
}

}  // namespace hbmalloc::lmcache
