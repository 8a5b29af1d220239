#include "notice.h"

#include <atomic>
#include <cstdarg>
#include <cstdio>

namespace di {

namespace {

using Listener = void (*)(const char*);

std::atomic<Listener> the_listener{nullptr};

}  // namespace

void notice(const char* format, ...) {
    const Listener listener = the_listener;
    if (!listener) return;
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    listener(text);
}

}  // namespace di

extern "C" __attribute__((visibility("default"))) void di_cuda_on_notice(void (*listener)(const char*)) {
    di::the_listener = listener;
}
