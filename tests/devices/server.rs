//! The device that models run on: another process's CPU, or one that is named from outside.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::program::DWINDLE;

/// Names a device of the build, such as `Vulkan0`, that takes the place of the lent one.
const NAMED: &str = "DWINDLE_DEVICE";

/// The device that models run on.
pub enum Device {
    /// Another process's CPU.
    Lent(Server),
    /// One of the build's own.
    Own(String),
}

impl Device {
    /// The named device, or else a lent one.
    pub fn start() -> Device {
        match std::env::var(NAMED) {
            Ok(name) => Device::Own(name),
            Err(_) => Device::Lent(Server::start()),
        }
    }

    /// Options that put a model on it.
    pub fn options(&self) -> Vec<&str> {
        match self {
            Device::Lent(server) => vec!["--rpc", &server.address, "--device", "RPC0"],
            Device::Own(name) => vec!["--device", name],
        }
    }

    /// How much noise is to be expected, as a multiple of what two CPUs of a kind differ by: other devices sum
    /// in another order, and round a layer's input otherwise or not at all.
    pub fn noise(&self) -> f64 {
        match self {
            Device::Lent(_) => 1.0,
            Device::Own(_) => 10.0,
        }
    }

    /// Asserts that a lent device has computed something: a hundredth of a second at least.
    #[track_caller]
    pub fn has_worked(&self) {
        let Device::Lent(server) = self else {
            return;
        };
        let stat = format!("/proc/{}/stat", server.process.id());
        // Where the system tells.
        if let Ok(stat) = std::fs::read_to_string(stat) {
            let behind_name = stat.rsplit(')').next().unwrap();
            let in_user_mode = behind_name.split_whitespace().nth(11).unwrap();
            assert!(in_user_mode.parse::<u64>().unwrap() > 0);
        }
    }
}

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
