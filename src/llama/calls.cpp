// llama.cpp's functions as dwindle calls them. Those of llama.h have C linkage and still throw.

#include "guard.h"
#include "llama.h"

#include <algorithm>
#include <memory>
#include <vector>

// Mirrors `Facts` in vocabulary.rs.
struct dwindle_vocabulary {
    int32_t type;
    int32_t n_tokens;
    int32_t bos;
    int32_t eos;
    int32_t eot;
    bool    add_bos;
    bool    add_eos;
};

// Mirrors `Text` in tokenizing.rs.
struct dwindle_text {
    const char * bytes;
    int32_t      len;
    bool         add_special;
    bool         parse_special;
};

// Mirrors `Choice` in sampler.rs.
struct dwindle_choice {
    float    temperature;
    float    top_p;
    float    min_p;
    int32_t  top_k;
    uint32_t seed;
};

extern "C" {

int dwindle_load_file(
        const char * path, const llama_model_params * params, llama_model ** model, dwindle_failure * failure) noexcept {
    return dwindle_guarded(failure, [&] { *model = llama_model_load_from_file(path, *params); });
}

int dwindle_load_stream(
        FILE * file, const llama_model_params * params, llama_model ** model, dwindle_failure * failure) noexcept {
    return dwindle_guarded(failure, [&] { *model = llama_model_load_from_file_ptr(file, *params); });
}

int dwindle_free_model(llama_model * model, dwindle_failure * failure) noexcept {
    return dwindle_guarded(failure, [&] { llama_model_free(model); });
}

int dwindle_new_context(
        llama_model * model, const llama_context_params * params, llama_context ** ctx, dwindle_failure * failure) noexcept {
    return dwindle_guarded(failure, [&] { *ctx = llama_init_from_model(model, *params); });
}

int dwindle_free_context(llama_context * ctx, dwindle_failure * failure) noexcept {
    return dwindle_guarded(failure, [&] { llama_free(ctx); });
}

int dwindle_decode(llama_context * ctx, const llama_batch * batch, int32_t * code, dwindle_failure * failure) noexcept {
    return dwindle_guarded(failure, [&] { *code = llama_decode(ctx, *batch); });
}

// Waits for the computation.
int dwindle_logits(llama_context * ctx, float ** rows, dwindle_failure * failure) noexcept {
    return dwindle_guarded(failure, [&] { *rows = llama_get_logits(ctx); });
}

// The pooled embedding of sequence 0, which has as many elements. Waits for the computation.
int dwindle_embedding(llama_context * ctx, float * row, size_t len, dwindle_failure * failure) noexcept {
    return dwindle_guarded(failure, [&] {
        const float * found = llama_get_embeddings_seq(ctx, 0);
        if (found) {
            std::copy_n(found, len, row);
        }
    });
}

// Forgets a sequence, or all with a negative number. A model without memory (an encoder) has nothing
// to forget.
int dwindle_forget(llama_context * ctx, int32_t sequence, dwindle_failure * failure) noexcept {
    return dwindle_guarded(failure, [&] {
        llama_memory_t memory = llama_get_memory(ctx);
        if (memory && sequence < 0) {
            llama_memory_clear(memory, true);
        } else if (memory) {
            llama_memory_seq_rm(memory, sequence, -1, -1);
        }
    });
}

// Forgets what a sequence has from a position on. Not every memory can.
int dwindle_forget_from(
        llama_context * ctx, int32_t sequence, int32_t position, bool * done, dwindle_failure * failure) noexcept {
    return dwindle_guarded(failure, [&] {
        llama_memory_t memory = llama_get_memory(ctx);
        *done = memory && llama_memory_seq_rm(memory, sequence, position, -1);
    });
}

int dwindle_state_size(llama_context * ctx, size_t * size, dwindle_failure * failure) noexcept {
    return dwindle_guarded(failure, [&] { *size = llama_state_get_size(ctx); });
}

int dwindle_state_get(llama_context * ctx, uint8_t * bytes, size_t * size, dwindle_failure * failure) noexcept {
    return dwindle_guarded(failure, [&] { *size = llama_state_get_data(ctx, bytes, *size); });
}

int dwindle_state_set(llama_context * ctx, const uint8_t * bytes, size_t * size, dwindle_failure * failure) noexcept {
    return dwindle_guarded(failure, [&] { *size = llama_state_set_data(ctx, bytes, *size); });
}

int dwindle_sequence_size(llama_context * ctx, int32_t sequence, size_t * size, dwindle_failure * failure) noexcept {
    return dwindle_guarded(failure, [&] { *size = llama_state_seq_get_size(ctx, sequence); });
}

int dwindle_sequence_get(
        llama_context * ctx, int32_t sequence, uint8_t * bytes, size_t * size, dwindle_failure * failure) noexcept {
    return dwindle_guarded(failure, [&] { *size = llama_state_seq_get_data(ctx, bytes, *size, sequence); });
}

int dwindle_sequence_set(
        llama_context * ctx, int32_t sequence, const uint8_t * bytes, size_t * size, dwindle_failure * failure) noexcept {
    return dwindle_guarded(failure, [&] { *size = llama_state_seq_set_data(ctx, bytes, *size, sequence); });
}

int dwindle_rope_type(const llama_model * model, int32_t * type, dwindle_failure * failure) noexcept {
    return dwindle_guarded(failure, [&] { *type = llama_model_rope_type(model); });
}

int dwindle_load_adapter(
        llama_model * model, const char * path, llama_adapter_lora ** adapter, dwindle_failure * failure) noexcept {
    return dwindle_guarded(failure, [&] { *adapter = llama_adapter_lora_init(model, path); });
}

int dwindle_set_adapters(
        llama_context * ctx, llama_adapter_lora ** adapters, size_t count, float * scales, dwindle_failure * failure) noexcept {
    return dwindle_guarded(failure, [&] { llama_set_adapters_lora(ctx, adapters, count, scales); });
}

int dwindle_vocabulary_of(const llama_model * model, dwindle_vocabulary * out, dwindle_failure * failure) noexcept {
    return dwindle_guarded(failure, [&] {
        const llama_vocab * vocab = llama_model_get_vocab(model);
        out->type     = llama_vocab_type(vocab);
        out->n_tokens = llama_vocab_n_tokens(vocab);
        out->bos      = llama_vocab_bos(vocab);
        out->eos      = llama_vocab_eos(vocab);
        out->eot      = llama_vocab_eot(vocab);
        out->add_bos  = llama_vocab_get_add_bos(vocab);
        out->add_eos  = llama_vocab_get_add_eos(vocab);
    });
}

int dwindle_is_end(const llama_model * model, llama_token token, bool * is_end, dwindle_failure * failure) noexcept {
    return dwindle_guarded(failure, [&] { *is_end = llama_vocab_is_eog(llama_model_get_vocab(model), token); });
}

// Into `tokens`, which has room for `*count`; then `*count` is their number, or less than zero the
// room that they need.
int dwindle_tokenize(
        const llama_model * model, const dwindle_text * text,
        llama_token * tokens, int32_t * count, dwindle_failure * failure) noexcept {
    return dwindle_guarded(failure, [&] {
        *count = llama_tokenize(llama_model_get_vocab(model), text->bytes, text->len, tokens, *count,
            text->add_special, text->parse_special);
    });
}

// As `dwindle_tokenize`, bytes of a token.
int dwindle_piece(
        const llama_model * model, llama_token token, bool special,
        char * bytes, int32_t * count, dwindle_failure * failure) noexcept {
    return dwindle_guarded(failure, [&] {
        *count = llama_token_to_piece(llama_model_get_vocab(model), token, bytes, *count, /*lstrip*/ 0, special);
    });
}

int dwindle_chat_template(const llama_model * model, const char ** text, dwindle_failure * failure) noexcept {
    return dwindle_guarded(failure, [&] { *text = llama_model_chat_template(model, nullptr); });
}

// Into `bytes`, which has room for `*count`; then `*count` is the number that there are, more than the
// room perhaps, or less than zero where llama.cpp does not know the template.
int dwindle_apply_template(
        const char * chat_template, const llama_chat_message * messages, size_t n_messages,
        char * bytes, int32_t * count, dwindle_failure * failure) noexcept {
    return dwindle_guarded(failure, [&] {
        *count = llama_chat_apply_template(chat_template, messages, n_messages, /*add_ass*/ true, bytes, *count);
    });
}

int dwindle_new_sampler(const dwindle_choice * choice, llama_sampler ** out, dwindle_failure * failure) noexcept {
    return dwindle_guarded(failure, [&] {
        std::unique_ptr<llama_sampler, decltype(&llama_sampler_free)> chain(
            llama_sampler_chain_init(llama_sampler_chain_default_params()), llama_sampler_free);
        llama_sampler_chain_add(chain.get(), llama_sampler_init_top_k(choice->top_k));
        llama_sampler_chain_add(chain.get(), llama_sampler_init_top_p(choice->top_p, 1));
        llama_sampler_chain_add(chain.get(), llama_sampler_init_min_p(choice->min_p, 1));
        llama_sampler_chain_add(chain.get(), llama_sampler_init_temp(choice->temperature));
        llama_sampler_chain_add(chain.get(), llama_sampler_init_dist(choice->seed));
        *out = chain.release();
    });
}

int dwindle_free_sampler(llama_sampler * sampler, dwindle_failure * failure) noexcept {
    return dwindle_guarded(failure, [&] { llama_sampler_free(sampler); });
}

// `*token` is less than zero where none was chosen.
int dwindle_sample(
        llama_sampler * sampler, const float * logits, int32_t n_logits, llama_token * token,
        dwindle_failure * failure) noexcept {
    return dwindle_guarded(failure, [&] {
        std::vector<llama_token_data> all;
        all.reserve(n_logits);
        for (llama_token id = 0; id < n_logits; id++) {
            all.push_back({ id, logits[id], 0.0f });
        }
        llama_token_data_array candidates = { all.data(), all.size(), /*selected*/ -1, /*sorted*/ false };
        llama_sampler_apply(sampler, &candidates);
        const bool chosen = candidates.selected >= 0 && (size_t) candidates.selected < candidates.size;
        *token = chosen ? candidates.data[candidates.selected].id : -1;
    });
}

// `add` is ggml_backend_rpc_add_server, which a build may lack.
int dwindle_add_server(
        void * add, const char * endpoint, ggml_backend_reg_t * registry, dwindle_failure * failure) noexcept {
    return dwindle_guarded(failure, [&] {
        *registry = reinterpret_cast<ggml_backend_reg_t (*)(const char *)>(add)(endpoint);
        if (*registry) {
            ggml_backend_register(*registry);
        }
    });
}

// `serve` is ggml_backend_rpc_start_server, which returns when it can't serve.
int dwindle_lend(
        void * serve, const char * endpoint, size_t n_threads, size_t n_devices, ggml_backend_dev_t * devices,
        dwindle_failure * failure) noexcept {
    using Serve = void (*)(const char *, const char *, size_t, size_t, ggml_backend_dev_t *);
    return dwindle_guarded(failure, [&] {
        reinterpret_cast<Serve>(serve)(endpoint, /*cache_dir*/ nullptr, n_threads, n_devices, devices);
    });
}

int dwindle_describe(const llama_model * model, char * text, size_t len, dwindle_failure * failure) noexcept {
    return dwindle_guarded(failure, [&] { llama_model_desc(model, text, len); });
}

// The words of one key of the metadata. Not there: `*count` is less than zero.
int dwindle_metadata(
        const llama_model * model, const char * key, char * text, size_t len, int32_t * count, dwindle_failure * failure) noexcept {
    return dwindle_guarded(failure, [&] { *count = llama_model_meta_val_str(model, key, text, len); });
}

} // extern "C"
