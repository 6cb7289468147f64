// The other unit, which may be a library of its own.
#include <hbmalloc.hpp>

#ifndef EXPORTED
#define EXPORTED
#endif

EXPORTED hbmalloc::Allocator plain_of_the_other_unit();
EXPORTED hbmalloc::Stream &stream_of_the_other_unit();
EXPORTED void refuse_in_the_other_unit();

hbmalloc::Allocator plain_of_the_other_unit() { return hbmalloc::Allocator(hbmalloc::kCPU); }
hbmalloc::Stream &stream_of_the_other_unit() { return hbmalloc::Context::stream(); }
void refuse_in_the_other_unit() { plain_of_the_other_unit()->deallocate(&stream_of_the_other_unit(), 1); }
