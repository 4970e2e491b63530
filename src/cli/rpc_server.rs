//! `dwindle rpc-server`: lends this machine's devices to other machines.

use std::net::IpAddr;

use clap::Parser;

use super::Failure;
use crate::llama::context::default_threads;
use crate::llama::placement::Placement;
use crate::llama::remote::lend;

/// Lend this machine's devices to a dwindle, or a llama.cpp of the same version, on another machine
///
/// The other names this one with `--rpc HOST:PORT`. It serves one program at a time, until it is ended. It
/// checks nobody: listen only where none but friends can connect.
#[derive(Debug, Parser)]
pub struct Args {
    /// Address to listen at
    #[arg(long, default_value = "127.0.0.1")]
    host: String,
    /// Port to listen at
    #[arg(short, long, default_value_t = 50052)]
    port: u16,
    /// Devices to lend, by llama.cpp's names [default: all GPUs, or else the CPU]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    device: Option<Vec<String>>,
    /// Threads of the CPU [default: one per physical core]
    #[arg(short, long)]
    threads: Option<u32>,
}

/// Runs `dwindle rpc-server`.
pub fn main(args: &Args) -> Result<(), Failure> {
    let placement = Placement {
        devices: args.device.clone(),
        ..Placement::default()
    };
    let is_own = |address: IpAddr| address.is_loopback();
    if args.host != "localhost" && !args.host.parse().is_ok_and(is_own) {
        eprintln!(
            "warning: whoever reaches {} can use this machine's memory and run models on it",
            args.host
        );
    }
    let endpoint = format!("{}:{}", args.host, args.port);
    let threads = args.threads.unwrap_or_else(default_threads);
    match lend(&endpoint, threads, &placement)? {}
}
