// What a ggml backend is made of, for bindings: llama.cpp does not install these headers.
#include "ggml-backend-impl.h"
#include "ggml-impl.h"
