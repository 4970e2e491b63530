//! Options that say where layers are.

use std::net::{Ipv4Addr, TcpListener};

use assert_cmd::Command;

use crate::common::program::{checkpoint, dwindle, refusal, says, stdout};
use crate::server::Server;

fn text(options: &[&str]) -> String {
    let mut command = dwindle(["run", "--temp", "0", "-n", "8", "-p", "And God said"]);
    stdout(command.arg(checkpoint()).args(options))
}

fn run(options: &[&str]) -> Command {
    let mut command = dwindle(["run", "-n", "1", "-p", "And"]);
    command.arg(checkpoint()).args(options);
    command
}

#[track_caller]
fn refused(options: &[&str]) -> String {
    refusal(&mut run(options), 3)
}

#[track_caller]
fn misused(options: &[&str], pieces: &[&str]) {
    let output = run(options).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    says(&String::from_utf8_lossy(&output.stderr), pieces);
}

#[test]
fn devices_share_a_model() {
    let [one, two] = [Server::start(), Server::start()];
    let both = format!("{},{}", one.address(), two.address());
    let here = text(&["--device", "none"]);
    for options in [
        &["--device", "RPC0,RPC1", "-ts", "3,1"][..],
        &["-sm", "none", "-mg", "1", "-dev", "RPC0,RPC1"],
        &["-sm", "none", "-dev", "RPC1", "-ngl", "2"],
        &[],
    ] {
        let options = [&["--rpc", both.as_str()], options].concat();
        assert_eq!(text(&options), here, "{options:?}");
    }
}

#[test]
fn devices_that_are_not_there_are_refused() {
    let server = Server::start();
    let rpc = ["--rpc", server.address(), "--device"];
    let with = |options: &[&str]| refused(&[&rpc[..], options].concat());
    says(&with(&["CUDA3"]), &["`CUDA3`", "RPC0"]);
    says(
        &with(&["RPC0", "--main-gpu", "1"]),
        &["device 1", "there are 1"],
    );
    says(
        &with(&["RPC0", "--tensor-split", "1,1"]),
        &["2 parts", "1 devices"],
    );
    misused(&["-ts", "1,-1"], &["'-1'", "not negative"]);
}

#[test]
fn a_server_that_does_not_answer_is_named() {
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = free.local_addr().unwrap().to_string();
    drop(free);
    let sentence = refused(&["--rpc", &address]);
    says(&sentence, &["no server answers", &address]);
    misused(&["--rpc", "nowhere"], &["nowhere", "HOST:PORT"]);
}
