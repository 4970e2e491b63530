//! What `dwindle calibrate` and `dwindle diagnose` measure, and what `compress` makes of it.

#[path = "../common/mod.rs"]
mod common;

mod command;
mod diagnosis;
mod methods;
mod statistics;
