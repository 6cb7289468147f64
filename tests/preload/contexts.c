/* The rest of the stand-in for CUDA's runtime: memory between processes, of which it knows none, peers, and resets. */
#include "runtime.c"

typedef struct { char reserved[64]; } handle_t;

/* What the runtime's own functions were last given, and that they refuse. */
int cudaIpcGetMemHandle(handle_t *out, void *address) { BEGIN(cudaIpcGetMemHandle); (void)out; (void)address; return told(1); }
int cudaIpcOpenMemHandle(void **out, handle_t handle, unsigned flags) { BEGIN(cudaIpcOpenMemHandle); (void)out; (void)flags; return told(handle.reserved[0] == 'h' ? 400 : 1); }
int cudaIpcCloseMemHandle(void *address) { BEGIN(cudaIpcCloseMemHandle); (void)address; return told(1); }
int cudaDeviceEnablePeerAccess(int peer, unsigned flags) {
    int code;
    void *context;
    BEGIN(cudaDeviceEnablePeerAccess);
    if ((code = CU(cuDevicePrimaryCtxRetain, &context, peer)) != 0) return told(code);
    return told(CU(cuCtxEnablePeerAccess, context, flags));
}
int cudaDeviceReset(void) {
    count("cudaDeviceReset", 1);
    int code = CU(cuDevicePrimaryCtxReset_v2, current);
    contexts[current] = NULL;
    return code;
}
