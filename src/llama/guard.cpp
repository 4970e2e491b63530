// Failed assertions. ggml ends the process with abort() when one of its assertions, or one of
// llama.cpp's, fails; before that it calls a function, which may throw instead. The frames between
// are llama.cpp's and ggml's: C++ with its clean-up, and C, through which exceptions pass on every
// system whose compiler writes unwind tables for C (GCC and Clang do on x86-64 and AArch64).
//
// It is not thrown where nobody could catch it: on a thread that is not inside of a guarded call,
// where a function of Rust's lies between, which no exception may cross, and inside of a parallel
// region, whose other threads would wait for ever. There the process ends: as `dwindle_end_with` asks
// for, or by abort().

#include "guard.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <new>

#include <unistd.h>

// OpenMP's, where ggml was compiled with it.
extern "C" int omp_in_parallel(void) __attribute__((weak));

static thread_local unsigned depth    = 0;
static thread_local unsigned foreign  = 0; // frames of Rust inside of the innermost guard
static thread_local unsigned failures = 0;
static thread_local char     last[1024];

// -1: by abort().
static std::atomic<int> exit_code { -1 };

// `/where/it/was/built/ggml.c:12: x` -> `ggml.c:12: x`
static const char * without_folder(const char * message) noexcept {
    const char * end = strchr(message, ':');
    const char * name = message;
    for (const char * c = message; end && c < end; c++) {
        if (*c == '/' || *c == '\\') {
            name = c + 1;
        }
    }
    return name;
}

dwindle_assertion::dwindle_assertion(const char * message) noexcept {
    snprintf(text, sizeof(text), "%s", without_folder(message));
    // In one line.
    for (char * c = text; *c; c++) {
        if (*c == '\n') {
            *c = ' ';
        }
    }
}

dwindle_guard::dwindle_guard() noexcept : before(failures), outside(foreign) {
    depth++;
    foreign = 0;
}

dwindle_guard::~dwindle_guard() noexcept {
    depth--;
    foreign = outside;
}

bool dwindle_guard::failed() const noexcept {
    return failures != before;
}

int dwindle_guard::ended(bool thrown, const char * words, dwindle_failure * failure) const noexcept {
    if (!failed() && !thrown) {
        return DWINDLE_DONE;
    }
    snprintf(failure->text, sizeof(failure->text), "%s", failed() ? last : words);
    return failed() ? DWINDLE_FAILED : DWINDLE_THROWN;
}

static void on_abort(const char * message) {
    const dwindle_assertion assertion(message);
    const bool alone = omp_in_parallel == nullptr || omp_in_parallel() == 0;
    if (depth > 0 && foreign == 0 && alone) {
        failures++;
        snprintf(last, sizeof(last), "%s", assertion.text);
        throw assertion;
    }
    fprintf(stderr, "error: llama.cpp can't go on: %s\n", assertion.text);
    const int code = exit_code.load();
    if (code >= 0) {
        fflush(stdout);
        _exit(code);
    }
}

extern "C" void dwindle_catch_aborts(void) noexcept {
    ggml_set_abort_callback(on_abort);
}

// Called by functions of Rust's that llama.cpp calls: with 1 when they begin, with -1 when they end.
extern "C" void dwindle_foreign(int by) noexcept {
    foreign += by;
}

extern "C" void dwindle_end_with(int code) noexcept {
    exit_code.store(code);
}

// A call for tests: throws, fails an assertion, or does nothing.
extern "C" int dwindle_provoke(int how, dwindle_failure * failure) noexcept {
    return dwindle_guarded(failure, [&] {
        switch (how) {
            case DWINDLE_THROWN: throw std::bad_alloc();
            case DWINDLE_FAILED: GGML_ABORT("provoked");
            default: break;
        }
    });
}
