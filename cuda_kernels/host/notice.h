// One readable sentence to whoever listens: something is not as it could be, but all goes on without it.
#pragma once

namespace di {

void notice(const char* format, ...) __attribute__((format(printf, 1, 2)));

}  // namespace di
