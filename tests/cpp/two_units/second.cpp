#include <hbmalloc.hpp>

hbmalloc::Allocator plain_of_the_other_unit();
hbmalloc::Stream &stream_of_the_other_unit();
void refuse_in_the_other_unit();

hbmalloc::Allocator plain_of_the_other_unit() { return hbmalloc::Allocator(hbmalloc::kCPU); }
hbmalloc::Stream &stream_of_the_other_unit() { return hbmalloc::Context::stream(); }
void refuse_in_the_other_unit() { plain_of_the_other_unit()->deallocate(&stream_of_the_other_unit(), 1); }
