/* Steering the simulated CUDA driver (libhbmalloc_sim.so).
 *
 * The library exports libcuda.so.1's names over host memory; these functions configure it, make it fail,
 * hold its streams back and tell what is alive. Integer answers are CUresult values, 0 for success.
 * In a forked child of an initialised process they answer 3 and do nothing. */
#ifndef HBMALLOC_SIM_H
#define HBMALLOC_SIM_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* A CUstream and a CUdeviceptr, without cuda.h. */
typedef void *hbmsim_stream;
typedef uint64_t hbmsim_address;

/* What is alive. Fields are only appended: pass sizeof, the smaller of the two structs is written. */
struct hbmsim_counters {
    uint64_t struct_size;            /* of the library's struct */
    uint64_t chunks;                 /* physical chunks, held by a handle or a mapping */
    uint64_t chunk_bytes;            /* those on devices */
    uint64_t mappings;
    uint64_t mapped_bytes;
    uint64_t reservations;
    uint64_t reserved_address_bytes;
    uint64_t device_allocs;          /* cuMemAlloc */
    uint64_t device_bytes;           /* as asked for */
    uint64_t managed_allocs;
    uint64_t managed_bytes;
    uint64_t async_reserved_bytes;   /* held by stream-ordered pools */
    uint64_t async_used_bytes;
    uint64_t async_allocs;
    uint64_t pools;                  /* made by the program */
    uint64_t pinned_allocs;
    uint64_t pinned_bytes;
    uint64_t registered;
    uint64_t registered_bytes;
    uint64_t events;
    uint64_t streams;                /* made by the program */
    uint64_t graphs;                 /* graphs and executables */
    uint64_t captures;               /* open ones */
    uint64_t contexts;
    uint64_t physical_bytes;         /* of all devices, as the driver would round them */
    uint64_t peak_physical_bytes;    /* sum of the devices' peaks */
    uint64_t host_chunk_bytes;       /* chunks in host memory */
    uint64_t faults;
    uint64_t leaks;                  /* objects alive when hbmsim_deinit was called */
    uint64_t queued;                 /* operations that have not run */
    uint64_t device_ns;              /* device time of all work that has run */
    uint64_t handles;                /* chunk handles not yet released */
    uint64_t memory_bytes;           /* memory of every form: chunks, plain, managed, pinned, pools; as asked for */
    uint64_t peak_memory_bytes;      /* the most that has been */
};

/* The machine, as HBMALLOC_SIM says it; in force from the next cuInit or reset. A bad value answers 1. */
int hbmsim_configure(const char *spec);
/* Drops everything, clears faults, failures and counts, and reads the configuration again. */
void hbmsim_reset(void);

/* The nth coming call of that name (from 1) and the times-1 after it answer code; times 0 is for ever.
 * "cuMemAlloc" stands for "cuMemAlloc_v2" too, "*" for every call. */
int hbmsim_fail(const char *call, uint64_t nth, int code, uint64_t times);
void hbmsim_fail_clear(void);
/* Out of memory past so many bytes of a device; 0 takes the cap away. Survives reset. */
int hbmsim_oom_at(int device, uint64_t bytes);

/* How often a call was made; "*" is all of them. */
uint64_t hbmsim_calls(const char *call);
/* "name count" a line. The answer is the length of the whole text; a NULL buffer only asks. */
uint64_t hbmsim_call_log(char *buffer, uint64_t capacity);
/* What the real driver would have spent in the calls so far. */
uint64_t hbmsim_virtual_ns(void);
/* Device time of the work that a stream has run. */
uint64_t hbmsim_device_ns(hbmsim_stream stream);
int hbmsim_counters(struct hbmsim_counters *out, uint64_t struct_size);
/* Physical bytes of one device, now and at most; either may be NULL. */
int hbmsim_physical(int device, uint64_t *used, uint64_t *peak);

/* Nothing starts on the stream until it is released. */
int hbmsim_hold(hbmsim_stream stream);
int hbmsim_release(hbmsim_stream stream);
/* A kernel that uses a range (none with 0 bytes) until it is stopped; stop ends all that are queued. */
int hbmsim_spin(hbmsim_stream stream, hbmsim_address base, uint64_t bytes);
int hbmsim_spin_stop(hbmsim_stream stream);
/* A kernel that uses a range and ends as soon as its turn has come. */
int hbmsim_kernel(hbmsim_stream stream, hbmsim_address base, uint64_t bytes);

/* What would have been faults on a card: the answer is their number, the buffer gets a message a line. */
uint64_t hbmsim_faults(char *buffer, uint64_t capacity);
/* Forgets them, and mends the contexts they broke. */
void hbmsim_faults_clear(void);

/* From now on every call answers 4, as at the end of a process. */
void hbmsim_deinit(void);

/* The address of an exported name if the configured driver has it, else NULL: ask this instead of dlsym. */
void *hbmsim_symbol(const char *name);

#ifdef __cplusplus
}
#endif

#endif
