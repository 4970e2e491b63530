//! Measuring: perplexity, KL divergence, speed and memory.
