// A test program is a table of cases; `program CASE` runs one and says what failed.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <cstring>

#define CHECK(condition)                                                            \
    do {                                                                            \
        if (!(condition)) {                                                         \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
            abort();                                                                \
        }                                                                           \
    } while (false)

struct Case {
    const char* name;
    void (*run)();
};

template <size_t N>
int run_case(const Case (&cases)[N], const char* name) {
    for (const Case& c : cases) {
        if (strcmp(c.name, name) == 0) return c.run(), 0;
    }
    fprintf(stderr, "no case is called %s\n", name);
    return 2;
}
