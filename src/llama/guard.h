// What lets nothing of llama.cpp's escape into Rust: neither a C++ exception, nor, where it can be
// had, a failed assertion.

#pragma once

#include "ggml.h"

#include <cstddef>
#include <cstdio>
#include <exception>

// How a guarded call ended. Mirrors `Ended` in guard.rs.
enum dwindle_ended : int {
    DWINDLE_DONE   = 0,
    DWINDLE_THROWN = 1, // a C++ exception: what was being made is gone, the rest is as it was
    DWINDLE_FAILED = 2, // a failed assertion: what the call worked on may be in any state
};

// Mirrors `Failure` in guard.rs.
struct dwindle_failure {
    char text[1024];
};

// A failed assertion of llama.cpp or ggml, as an exception.
struct dwindle_assertion : std::exception {
    char text[1024];
    explicit dwindle_assertion(const char * message) noexcept;
    const char * what() const noexcept override { return text; }
};

// While one lives, assertions that fail on this thread are thrown.
class dwindle_guard {
public:
    dwindle_guard() noexcept;
    ~dwindle_guard() noexcept;
    dwindle_guard(const dwindle_guard &) = delete;
    dwindle_guard & operator=(const dwindle_guard &) = delete;

    // Whether an assertion has failed since: llama.cpp may have caught what was thrown.
    bool failed() const noexcept;

    // How the call ended, which threw, if it did, with these words.
    int ended(bool thrown, const char * words, dwindle_failure * failure) const noexcept;

private:
    unsigned before;
    unsigned outside;
};

// Runs a call of llama.cpp.
template <typename Call>
int dwindle_guarded(dwindle_failure * failure, Call && call) noexcept {
    dwindle_guard guard;
    try {
        call();
        return guard.ended(false, "", failure);
    } catch (const std::exception & e) {
        return guard.ended(true, e.what(), failure);
    } catch (...) {
        return guard.ended(true, "an exception of an unknown type", failure);
    }
}
