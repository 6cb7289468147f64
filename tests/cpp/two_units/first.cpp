// The header in two units of one program: one definition of everything, one state.
#include "../expect.hpp"

hbmalloc::Allocator plain_of_the_other_unit();
hbmalloc::Stream &stream_of_the_other_unit();
void refuse_in_the_other_unit();

int main() {
    CHECK(hbm_option_set("log", "off") == HBM_OK);
    CHECK(hbmalloc::Allocator(hbmalloc::kCPU) == plain_of_the_other_unit());
    hbmalloc::Stream stream = hbmalloc::Stream::create();
    hbmalloc::ContextGuard guard(stream);
    CHECK(&stream_of_the_other_unit() == &hbmalloc::Context::stream());
    Refusals refusals;
    refuse_in_the_other_unit();
    CHECK(refusals.take() == 1);
    thrown<std::bad_alloc>(HBM_OUT_OF_MEMORY, [] { plain_of_the_other_unit().allocate(std::size_t(1) << 60); });
    std::puts("two units: fine");
}
