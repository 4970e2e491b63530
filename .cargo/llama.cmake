# llama.cpp's helpers for its own tools take two fifths of its build, and nothing of them is linked.
set(LLAMA_BUILD_COMMON OFF CACHE BOOL "" FORCE)
# Devices of other machines, and of other processes.
set(GGML_RPC ON CACHE BOOL "" FORCE)
