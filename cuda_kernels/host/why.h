// A failure as a code and one readable sentence, in the caller's buffer.
#pragma once
#include <cstdarg>
#include <cstddef>
#include <cstdio>

#include "dashinfer_device.h"

namespace di {

struct Why {
    char* text;
    size_t size;

    int fail(int code, const char* format, ...) const __attribute__((format(printf, 3, 4))) {
        va_list arguments;
        va_start(arguments, format);
        if (text && size) std::vsnprintf(text, size, format, arguments);
        va_end(arguments);
        return code;
    }
};

}  // namespace di
