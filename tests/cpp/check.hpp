// Checks that end the program with a line that says what went wrong.
#pragma once

#include <hbmalloc.h>

#include <cstdio>
#include <cstdlib>

#define CHECK(condition)                                                                       \
    do {                                                                                       \
        if (!(condition)) {                                                                    \
            std::fprintf(stderr, "%s:%d: not so: %s\n  last error: %s\n", __FILE__, __LINE__,  \
                         #condition, hbm_last_error());                                        \
            std::exit(1);                                                                      \
        }                                                                                      \
    } while (0)
