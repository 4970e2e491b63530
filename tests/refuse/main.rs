//! What is refused: wrong commands, wrong checkpoints, damaged files, hostile files.

#[path = "../common/mod.rs"]
mod common;

mod checkpoints;
mod commands;
mod damage;
mod hostile_models;
mod hostile_texts;
mod hostile_tokenizer;
mod many_tensors;
mod unbounded_files;
