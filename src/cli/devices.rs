//! Options that say which devices a model's layers are on.

use clap::{Args, ValueEnum};

use super::Failure;
use crate::llama::placement::{Placement, Split};
use crate::llama::remote::add_server;

/// Which devices a model's layers are on.
#[derive(Debug, Clone, Args)]
pub struct Devices {
    /// Layers to offload to the devices [default: as many as they have memory for]
    #[arg(
        long = "gpu-layers",
        visible_alias = "n-gpu-layers",
        short = 'g',
        value_name = "N"
    )]
    gpu_layers: Option<u32>,
    /// Devices to use, by llama.cpp's names (`CUDA0,CUDA1`); `none` for the CPU [default: all GPUs]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    device: Option<Vec<String>>,
    /// How several devices share a model
    #[arg(long, value_name = "HOW", default_value = "layer")]
    split_mode: SplitMode,
    /// The device that has everything with `--split-mode none`, and intermediate results with `row`: its
    /// place among the devices, counted from 0
    #[arg(long, value_name = "N", default_value_t = 0)]
    main_gpu: u32,
    /// What each device takes of the model, in any unit (`3,1`) [default: by free memory]
    #[arg(long, value_name = "SHARES", value_delimiter = ',', value_parser = share)]
    tensor_split: Vec<f32>,
    /// Also use the devices of `dwindle rpc-server`, or of llama.cpp's own, at these addresses
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',', value_parser = address)]
    rpc: Vec<String>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum SplitMode {
    /// Everything on one device
    None,
    /// Some layers on each device
    Layer,
    /// Some rows of each matrix on each device
    Row,
}

fn share(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(share) if share.is_finite() && share >= 0.0 => Ok(share),
        _ => Err("expected a number that is not negative".into()),
    }
}

fn address(text: &str) -> Result<String, String> {
    match text.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => Ok(text.into()),
        _ => Err("expected `HOST:PORT`".into()),
    }
}

impl Devices {
    /// Where layers are, once the servers' devices are known.
    ///
    /// # Errors
    /// A server that doesn't answer.
    pub fn placement(&self) -> Result<Placement, Failure> {
        self.rpc.iter().try_for_each(|server| add_server(server))?;
        Ok(Placement {
            layers: self.gpu_layers,
            devices: self.device.as_ref().map(|names| match names.as_slice() {
                [only] if only == "none" => Vec::new(),
                names => names.to_vec(),
            }),
            split: match self.split_mode {
                SplitMode::None => Split::None,
                SplitMode::Layer => Split::Layer,
                SplitMode::Row => Split::Row,
            },
            main: self.main_gpu,
            shares: self.tensor_split.clone(),
        })
    }
}
