/* hbmalloc: GPU and pinned host memory for deep-learning programs.
 *
 * Every call that can fail returns a status, 0 for success; hbm_last_error() tells the rest. Calls may
 * come from any thread, with any CUDA context current or none, and leave both as they were. Sizes are
 * bytes. Streams are CUstream or cudaStream_t handles passed as void *.
 *
 * Frozen: the header as it would have been before hbm_allocator_desc_t got `location` and `numa_node`
 * and hbm_stats_t got `pending_bytes` and `warnings`. Programs built with it must go on working. */

#ifndef HBMALLOC_H
#define HBMALLOC_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#define HBM_VERSION_MAJOR 0
#define HBM_VERSION_MINOR 1
#define HBM_VERSION_PATCH 0
#define HBM_VERSION (HBM_VERSION_MAJOR * 10000 + HBM_VERSION_MINOR * 100 + HBM_VERSION_PATCH)


// What a call returns: 0 for success, else the kind of failure.
typedef enum hbm_status {
    HBM_OK = 0,
    HBM_INVALID_ARGUMENT = 1,
    HBM_OUT_OF_MEMORY = 2,
    HBM_UNSUPPORTED = 3,
    HBM_NO_DRIVER = 4,
    HBM_DRIVER = 5,
    HBM_NOT_OWNED = 6,
    HBM_CAPTURING = 7,
    HBM_FORKED = 8,
    HBM_SHUTDOWN = 9,
    HBM_BAD_OPTION = 10,
    HBM_BUSY = 11,
    HBM_INTERNAL = 12,
} hbm_status;

// The kinds of allocator.
typedef enum hbm_kind {
    // Synchronous device memory: a free waits for all work of the device.
    HBM_KIND_DEVICE = 0,
    // Managed memory.
    HBM_KIND_MANAGED = 1,
    // The driver's stream-ordered pools.
    HBM_KIND_ASYNC = 2,
    // Virtual memory management; at least one granule (2 MiB) a block.
    HBM_KIND_VMM = 3,
} hbm_kind;

// Where virtual-memory blocks live.
typedef enum hbm_location {
    // As the option `vmm_location` says.
    HBM_LOCATION_DEFAULT = 0,
    // In the memory of the device.
    HBM_LOCATION_DEVICE = 1,
    // In host memory of the NUMA node `numa_node`, mapped for the device.
    HBM_LOCATION_HOST_NUMA = 2,
} hbm_location;

// An allocator; only ever used through its pointer. A pointer that was destroyed or never was an
// allocator is an error, not a crash.
typedef struct hbm_allocator_t hbm_allocator_t;

// Receives a line of the log: level (1 error, 2 warn, 3 info, 4 debug, 5 trace), the part of the
// library it came from, the message, and the pointer given with the callback. May be called from
// any thread, and must not call the library.
typedef void (*hbm_log_callback_t)(int32_t level,
                                   const char *target,
                                   const char *message,
                                   void *user);

// One option. Fill in `struct_size` before the call.
typedef struct hbm_option_t {
    // sizeof(hbm_option_t) as the program was compiled.
    size_t struct_size;
    // Its name in calls; the environment variable is HBMALLOC_ and this in capitals.
    const char *name;
    // The value in force, as text; valid until the value changes again.
    const char *value;
    // The value when nobody sets one.
    const char *default_value;
    // Where the value came from.
    const char *origin;
    // What it does.
    const char *help;
    // What is accepted.
    const char *accepted;
} hbm_option_t;

// What allocator to make. Zero it, fill in `struct_size`, then what differs from zero.
typedef struct hbm_allocator_desc_t {
    // sizeof(hbm_allocator_desc_t) as the program was compiled.
    size_t struct_size;
    // An hbm_kind.
    int32_t kind;
    // The device's ordinal.
    int32_t device;
    // A tag for its blocks, or NULL. Copied.
    const char *tag;
} hbm_allocator_desc_t;

// Statistics. Fill in `struct_size` before the call. Sizes in bytes.
typedef struct hbm_stats_t {
    // sizeof(hbm_stats_t) as the program was compiled.
    size_t struct_size;
    // Bytes asked for by blocks now given out.
    uint64_t requested;
    // Bytes of blocks now given out.
    uint64_t allocated;
    // Bytes held from the device.
    uint64_t reserved;
    // The most `requested` has been; over all kinds, the sum of their peaks.
    uint64_t peak_requested;
    // The most `allocated` has been; over all kinds, the sum of their peaks.
    uint64_t peak_allocated;
    // The most `reserved` has been; over all kinds, the sum of their peaks.
    uint64_t peak_reserved;
    // Blocks given out since the start.
    uint64_t allocations;
    // Blocks taken back since the start.
    uint64_t deallocations;
    // Requests that failed since the start.
    uint64_t failed_allocations;
    // Frees of addresses that were no block, in the whole process.
    uint64_t rejected_frees;
    // Freed blocks of the device that wait for work to end.
    uint64_t pending_frees;
} hbm_stats_t;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// The version of the library in use: major * 10000 + minor * 100 + patch.
int32_t hbm_version(void);

// The version of the library in use as text, such as "0.1.0".
const char *hbm_version_string(void);

// A status in words; "unknown status" for an integer that is none.
const char *hbm_status_name(int32_t status);

// The text of the calling thread's last error: operation, driver's code and text, sizes, what to do.
// Valid until the next error of the thread; empty when there was none. Successes leave it alone.
const char *hbm_last_error(void);

// The driver's code of the calling thread's last error; 0 where the driver was not the cause.
int32_t hbm_last_driver_code(void);

// Sends the log to a callback instead of standard error or the log file; NULL ends that. What is
// logged stays a matter of the option `log`.
//
// Required: The callback and `user` must stay valid until replaced, on any thread.
int32_t hbm_log_set_callback(hbm_log_callback_t callback, void *user);

// 1 once the library has opened the GPU driver or tried to, else 0. Makes no driver call.
int32_t hbm_driver_used(void);

// 1 in a process forked from one in which the library had initialised the driver: there
// allocating is an error and freeing does nothing. Else 0.
int32_t hbm_forked(void);

// Writes the number of devices to `*count`. Opens and initialises the driver.
//
// Required: `count` must be valid for a write.
int32_t hbm_device_count(int32_t *count);

// Sets an option. `name` is as in the table ("backend") or the variable ("HBMALLOC_BACKEND").
// Beats the environment. HBM_BAD_OPTION for an unknown name or a bad value, HBM_BUSY for an option
// from which something has been built already. Any thread; makes no driver call.
//
// Required: Both must be C strings.
int32_t hbm_option_set(const char *name, const char *value);

// Writes the value in force as text to `buffer`, cut to `capacity` bytes with the final zero, and
// the bytes needed to `*needed` (which may be NULL).
//
// Required: `name` must be a C string, `buffer` valid for `capacity` bytes or NULL with capacity 0.
int32_t hbm_option_get(const char *name, char *buffer, size_t capacity, size_t *needed);

// How many options there are.
size_t hbm_option_count(void);

// Describes the option of an index below hbm_option_count().
//
// Required: `out` must point to an hbm_option_t whose `struct_size` is filled in.
int32_t hbm_option_describe(size_t index, struct hbm_option_t *out);

// Makes an allocator and writes it to `*out`. The device is opened now, so that a machine without
// one shows here. Any thread.
//
// Required: `descriptor` must point to a filled-in descriptor, `out` be valid for a write.
int32_t hbm_allocator_create(const struct hbm_allocator_desc_t *descriptor,
                             struct hbm_allocator_t **out);

// Destroys an allocator. HBM_BUSY while blocks of it are given out. NULL is fine.
int32_t hbm_allocator_destroy(struct hbm_allocator_t *allocator);

// Allocates `bytes` above zero, aligned to `alignment` (a power of two; 0 means 256, and only vmm
// gives more than 256), for use on `stream` (a CUstream or cudaStream_t of the device; NULL is the
// legacy stream), and writes the address to `*out`. Any thread, with any context current or none.
//
// Required: `out` must be valid for a write; `stream` must be a live stream of the device.
int32_t hbm_allocator_allocate(struct hbm_allocator_t *allocator,
                               size_t bytes,
                               size_t alignment,
                               void *stream,
                               void **out);

// Takes a block back. Work already given to the stream it was allocated on, to `stream`, and to
// every stream recorded for it may still use it; later work may not. HBM_NOT_OWNED for an address
// that is no block of this allocator, or no longer one; it is left alone. NULL is fine. Does not
// wait, but for device and managed memory. Any thread.
int32_t hbm_allocator_deallocate(struct hbm_allocator_t *allocator, void *address, void *stream);

// Says that work already given to `stream` uses the block at `address`, so that its memory is not
// given back before that work is done. Any thread; no driver call.
int32_t hbm_allocator_record_stream(struct hbm_allocator_t *allocator, void *address, void *stream);

// Gives cached memory of the allocator's device back, down to `keep` bytes a source, and writes
// the bytes given back to `*released` (which may be NULL). Waits for work on freed blocks; does
// nothing while a stream capture is open on the device.
//
// Required: `released` must be NULL or valid for a write.
int32_t hbm_allocator_trim(struct hbm_allocator_t *allocator, uint64_t keep, uint64_t *released);

// Statistics of the allocator's kind on its device.
//
// Required: `out` must point to an hbm_stats_t whose `struct_size` is filled in.
int32_t hbm_allocator_stats(struct hbm_allocator_t *allocator, struct hbm_stats_t *out);

// Statistics of one kind (an hbm_kind) on a device, or of all kinds (-1).
//
// Required: `out` must point to an hbm_stats_t whose `struct_size` is filled in.
int32_t hbm_stats(int32_t device, int32_t kind, struct hbm_stats_t *out);

// Gives cached memory of a device back, as hbm_allocator_trim.
//
// Required: `released` must be NULL or valid for a write.
int32_t hbm_trim(int32_t device, uint64_t keep, uint64_t *released);

// Call this before destroying a stream that was named to the library, so that the library never
// names it to the driver again (the driver crashes on the handle of a destroyed stream). Blocks
// that used the stream stay valid; their memory is later given back behind all work of the device.
int32_t hbm_stream_forget(int32_t device, void *stream);

// Says that every hook is set (1), or that none is (0): then a freed block waits behind all work
// of the device.
void hbm_torch_set_hooked(int hooked);

// torch's init hook: called with the number of devices. Nothing to do: devices come into use with
// their first allocation.
void hbm_torch_init(int device_count);

// torch's reset hook, from `torch.cuda.empty_cache()`: gives back what is cached, on every device
// in use.
void hbm_torch_reset(void);

// torch's memory fraction hook: limits what blocks on `device` may take to a share of its memory.
void hbm_torch_memory_fraction(double fraction, int device);

// torch's base allocation hook: the beginning of the block that `address` lies in, its size to
// `*size`; `address` itself where it lies in none.
//
// Required: `size` must be NULL or valid for a write.
void *hbm_torch_base_alloc(void *address, size_t *size);

// torch's record_stream hook: work already given to `stream` uses the block at `address`.
void hbm_torch_record_stream(void *address, void *stream);

// torch's begin_allocate_to_pool hook: a capture into a graph pool is about to begin. torch's
// filter of streams is not needed: the driver says which streams capture.
void hbm_torch_begin_allocate_to_pool(int device, uint64_t id_high, uint64_t id_low, void *filter);

// torch's end_allocate_to_pool hook: the capture is over.
void hbm_torch_end_allocate_to_pool(int device, uint64_t id_high, uint64_t id_low);

// torch's release_pool hook: one graph of the pool is gone.
void hbm_torch_release_pool(int device, uint64_t id_high, uint64_t id_low);

// Writes a pair of functions for one MemPool: segments come from `kind` (an hbm_kind, or -1 for
// the option `backend`) and carry `tag`. Makes no driver call.
//
// Required: `tag` must be a C string, both out-pointers valid for a write.
int32_t hbm_torch_segment_functions(int32_t kind,
                                    const char *tag,
                                    void **malloc_function,
                                    void **free_function);

// Entry points with the signatures of torch.cuda.memory.CUDAPluggableAllocator. X_malloc returns NULL
// for size 0; on failure it raises torch.OutOfMemoryError or RuntimeError where torch is in the
// process, and returns NULL elsewhere. X_segment_malloc serves torch.cuda.MemPool, vLLM and CuPy: it
// returns NULL on failure and never raises. X_free trusts the library's own record over size, device
// and stream, and reports and ignores what is no block.

// From the source that the option `backend` names.
void *hbm_malloc(size_t size, int device, void *stream);
void hbm_free(void *address, size_t size, int device, void *stream);
void *hbm_segment_malloc(size_t size, int device, void *stream);
void hbm_segment_free(void *address, size_t size, int device, void *stream);

// From synchronous device memory.
void *device_malloc(size_t size, int device, void *stream);
void device_free(void *address, size_t size, int device, void *stream);
void *device_segment_malloc(size_t size, int device, void *stream);
void device_segment_free(void *address, size_t size, int device, void *stream);

// From managed memory.
void *managed_malloc(size_t size, int device, void *stream);
void managed_free(void *address, size_t size, int device, void *stream);
void *managed_segment_malloc(size_t size, int device, void *stream);
void managed_segment_free(void *address, size_t size, int device, void *stream);

// From the stream-ordered pool.
void *async_malloc(size_t size, int device, void *stream);
void async_free(void *address, size_t size, int device, void *stream);
void *async_segment_malloc(size_t size, int device, void *stream);
void async_segment_free(void *address, size_t size, int device, void *stream);

// From virtual memory.
void *vmm_malloc(size_t size, int device, void *stream);
void vmm_free(void *address, size_t size, int device, void *stream);
void *vmm_segment_malloc(size_t size, int device, void *stream);
void vmm_segment_free(void *address, size_t size, int device, void *stream);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* HBMALLOC_H */
