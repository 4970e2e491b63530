// The C++ that Rust can't call itself, as it has C++ linkage: llama-quantize's choice of types, the
// memory breakdown, the tensors of a loaded model. No exception leaves this file.
//
// llama-ext.h offers llama_quant_compute_types(), but it forgets that an importance matrix is
// there, which several mixtures depend on, and it expects the caller to know the order in which
// llama-quantize visits tensors. So the source itself is compiled in here, its public functions
// renamed: the rules stay llama.cpp's own, to the letter.

#define llama_ftype_get_default_type           dwindle_ftype_get_default_type
#define llama_model_quantize_default_params    dwindle_model_quantize_default_params
#define llama_model_quantize                   dwindle_model_quantize
#define llama_quant_init                       dwindle_quant_init
#define llama_quant_free                       dwindle_quant_free
#define llama_quant_model_from_metadata        dwindle_quant_model_from_metadata
#define llama_quant_tensor_allows_quantization dwindle_quant_tensor_allows_quantization
#define llama_quant_compute_types              dwindle_quant_compute_types
#define quantize_state_impl                    dwindle_quantize_state_impl

#include "llama-quant.cpp"

#include "guard.h"

#include <memory>
#include <numeric>

// Mirrors `RawTensor` in mixture.rs.
struct dwindle_tensor {
    const char * name;
    int64_t      ne[4];
    int32_t      type;        // in: of the source
    int32_t      target;      // out: -1 where the tensor stays as it is
    bool         needs_imatrix; // out
};

static void put_error(char * error, size_t error_len, const char * text) {
    if (error_len > 0) {
        snprintf(error, error_len, "%s", text);
    }
}

extern "C" int dwindle_mixture(
        const llama_quant_model_desc * desc, int32_t ftype, bool has_imatrix, bool pure,
        dwindle_tensor * tensors, size_t n_tensors, char * error, size_t error_len) {
    dwindle_guard guard;
    try {
        if (llm_arch_from_string(desc->architecture) == LLM_ARCH_UNKNOWN) {
            throw std::runtime_error("llama.cpp does not know this architecture");
        }
        const auto file_type = (llama_ftype) ftype;
        const ggml_type default_type = llama_ftype_get_default_type(file_type);
        if (default_type == GGML_TYPE_COUNT) {
            throw std::runtime_error("llama.cpp does not know this file type");
        }
        std::unique_ptr<llama_model, void (*)(llama_model *)> model(
            llama_quant_model_from_metadata(desc), llama_model_free);

        auto params  = llama_model_quantize_default_params();
        params.ftype = file_type;
        params.pure  = pure;

        quantize_state_impl qs(*model, &params);
        qs.has_imatrix = has_imatrix;

        std::unique_ptr<ggml_context, void (*)(ggml_context *)> ctx(
            ggml_init({ (n_tensors + 1)*ggml_tensor_overhead(), nullptr, /*no_alloc*/ true }), ggml_free);
        if (!ctx) {
            throw std::runtime_error("out of memory");
        }

        // The counters of the mixtures follow the loader's order: by layer, then by name.
        std::vector<size_t> order(n_tensors);
        std::iota(order.begin(), order.end(), 0);
        llama_model_loader::weight_name_comparer before;
        std::sort(order.begin(), order.end(), [&](size_t a, size_t b) {
            return before(tensors[a].name, tensors[b].name);
        });

        std::vector<tensor_metadata> metadata(n_tensors);
        for (size_t i = 0; i < n_tensors; i++) {
            metadata[i].name = tensors[order[i]].name;
        }
        init_quantize_state_counters(qs, metadata);
        for (size_t i = 0; i < n_tensors; i++) {
            auto & t = tensors[order[i]];
            ggml_tensor * tensor = ggml_new_tensor(ctx.get(), (ggml_type) t.type, 4, t.ne);
            ggml_set_name(tensor, t.name);
            t.target        = -1;
            t.needs_imatrix = false;
            if (tensor_allows_quantization(&params, model->arch, tensor)) {
                const auto target = llama_tensor_get_type(qs, &params, tensor, default_type, metadata[i]);
                t.target        = target;
                t.needs_imatrix = tensor_requires_imatrix(t.name, target, file_type);
            }
        }
        return 0;
    } catch (const std::exception & e) {
        put_error(error, error_len, e.what());
    } catch (...) {
        put_error(error, error_len, "unknown exception");
    }
    return 1;
}

// Bytes of the model, the context (KV cache) and the compute buffers, over all devices.
extern "C" int dwindle_memory(const llama_context * ctx, uint64_t * bytes) {
    dwindle_guard guard;
    try {
        bytes[0] = bytes[1] = bytes[2] = 0;
        for (const auto & [buft, data] : llama_get_memory_breakdown(ctx)) {
            bytes[0] += data.model;
            bytes[1] += data.context;
            bytes[2] += data.compute;
        }
        return 0;
    } catch (...) {
        return 1;
    }
}

// The model's own tensor of a name, or null.
extern "C" ggml_tensor * dwindle_find_tensor(const llama_model * model, const char * name) {
    dwindle_guard guard;
    try {
        for (const auto & [key, tensor] : llama_internal_get_tensor_map(model)) {
            if (key == name) {
                return tensor;
            }
        }
    } catch (...) {
    }
    return nullptr;
}
