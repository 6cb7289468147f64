#include "exception.h"

void torch_out_of_memory(const char *message) {
    throw c10::OutOfMemoryError({"torch_out_of_memory", __FILE__, __LINE__}, message);
}
