//! The process that lends its CPU.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::program::DWINDLE;

/// A running `dwindle rpc-server`.
pub struct Server {
    process: Child,
    address: String,
}

impl Server {
    /// Starts one, and waits until it listens.
    pub fn start() -> Server {
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let mut command = Command::new(DWINDLE);
        command.args(["rpc-server", "--threads", "2", "--device", "CPU"]);
        command.args(["--port", &address.port().to_string()]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut process = command.spawn().unwrap();
        let start = Instant::now();
        while TcpStream::connect(address).is_err() {
            assert_eq!(process.try_wait().unwrap(), None, "the server has ended");
            assert!(start.elapsed() < Duration::from_secs(60));
            std::thread::yield_now();
        }
        Server {
            process,
            address: address.to_string(),
        }
    }

    /// Options that put a model on its device.
    pub fn options(&self) -> [&str; 4] {
        ["--rpc", &self.address, "--device", "RPC0"]
    }

    /// Asserts that it has computed something: a hundredth of a second at least.
    #[track_caller]
    pub fn has_worked(&self) {
        let stat = format!("/proc/{}/stat", self.process.id());
        // Where the system tells.
        if let Ok(stat) = std::fs::read_to_string(stat) {
            let behind_name = stat.rsplit(')').next().unwrap();
            let in_user_mode = behind_name.split_whitespace().nth(11).unwrap();
            assert!(in_user_mode.parse::<u64>().unwrap() > 0);
        }
    }

    /// Its `HOST:PORT`.
    pub fn address(&self) -> &str {
        &self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
