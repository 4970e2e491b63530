//! Which devices a model's layers are on, and how many of them.

use llama_cpp_sys_2 as sys;

use super::backend::{Device, describe, devices, offloading, raw_devices};
use super::error::LlamaError;

/// Of a device's memory, what layers leave to keys and values and to intermediate results, at least:
/// as much as llama.cpp's own tools leave.
const LEAST_LEFT: u64 = 1 << 30;
/// As a part of the memory that is free: one part in this many.
const LEFT: u64 = 8;

/// How several devices share a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Split {
    /// One device has all that is offloaded.
    None,
    /// Each has some layers.
    #[default]
    Layer,
    /// Each has some rows of every matrix.
    Row,
}

/// Where a model's layers are.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Placement {
    /// Layers to offload, `None` for as many as the devices have memory for.
    pub layers: Option<u32>,
    /// Names of the devices to use, as [`devices`] lists them; `None` for all that layers can be offloaded
    /// to, empty for the CPU alone.
    pub devices: Option<Vec<String>>,
    /// How several devices share the model.
    pub split: Split,
    /// The position, among the devices to use, of the one that has everything with [`Split::None`], and
    /// intermediate results with [`Split::Row`].
    pub main: u32,
    /// How the devices share the model, in any unit; by their free memory if empty.
    pub shares: Vec<f32>,
}

impl Placement {
    /// Everything on the CPU.
    pub fn cpu() -> Placement {
        Placement {
            devices: Some(Vec::new()),
            ..Placement::default()
        }
    }

    /// Finds the devices, and decides how many layers of a model go there.
    ///
    /// # Errors
    /// A device that is not there, or a share or position of one that isn't used.
    pub(super) fn place(&self, sizes: &Sizes) -> Result<Placed, LlamaError> {
        let mut used = self.used()?;
        let fitting = || {
            let described: Vec<Device> = used.iter().map(|dev| describe(*dev)).collect();
            sizes.fitting(&described)
        };
        let layers = self.layers.or_else(fitting);
        // Without a list llama.cpp takes those that are taken here.
        let is_listed = self.devices.is_some() || self.split == Split::None && !used.is_empty();
        used.push(std::ptr::null_mut());
        Ok(Placed {
            layers,
            list: is_listed.then_some(used),
            split: self.split,
            main: if self.split == Split::None {
                0
            } else {
                self.main
            },
            shares: padded(self.shares.clone()),
        })
    }

    /// The devices of ggml's registry that are used.
    ///
    /// # Errors
    /// As [`Self::place`].
    pub(super) fn used(&self) -> Result<Vec<sys::ggml_backend_dev_t>, LlamaError> {
        let all = match &self.devices {
            Some(names) => names
                .iter()
                .map(|name| named(name))
                .collect::<Result<_, _>>()?,
            None => offloading(),
        };
        if self.shares.len() > all.len() {
            return Err(LlamaError::Shares {
                shares: self.shares.len(),
                devices: all.len(),
            });
        }
        match all.get(self.main as usize) {
            Some(main) if self.split == Split::None => Ok(vec![*main]),
            None if self.main > 0 => Err(LlamaError::MainDevice {
                main: self.main,
                devices: all.len(),
            }),
            _ => Ok(all),
        }
    }
}

fn named(name: &str) -> Result<sys::ggml_backend_dev_t, LlamaError> {
    let found = raw_devices().find(|dev| describe(*dev).name.eq_ignore_ascii_case(name));
    found.ok_or_else(|| {
        let known: Vec<String> = devices().into_iter().map(|d| d.name).collect();
        LlamaError::Device {
            name: name.to_string(),
            known: known.join(", "),
        }
    })
}

/// Shares as llama.cpp reads them: as many numbers as it knows devices at most, or none.
pub(super) fn padded(mut shares: Vec<f32>) -> Vec<f32> {
    if !shares.is_empty() {
        // SAFETY: returns a plain value.
        let most = unsafe { sys::llama_max_devices() };
        shares.resize(most.max(shares.len()), 0.0);
    }
    shares
}

/// What llama.cpp is told of a placement. The lists live in it.
pub(super) struct Placed {
    layers: Option<u32>,
    list: Option<Vec<sys::ggml_backend_dev_t>>,
    split: Split,
    main: u32,
    shares: Vec<f32>,
}

impl Placed {
    /// The same on other devices, of which each has its share.
    pub fn on(mut self, devices: Vec<sys::ggml_backend_dev_t>, shares: Vec<f32>) -> Placed {
        self.list = Some(devices);
        self.shares = padded(shares);
        self.split = Split::Layer;
        self.main = 0;
        self
    }

    /// Enters it into llama.cpp's parameters, which point into this afterwards.
    pub fn enter(&mut self, params: &mut sys::llama_model_params) {
        if let Some(n) = self.layers {
            params.n_gpu_layers = i32::try_from(n).unwrap_or(i32::MAX);
        }
        if let Some(list) = &mut self.list {
            params.devices = list.as_mut_ptr();
        }
        if !self.shares.is_empty() {
            params.tensor_split = self.shares.as_ptr();
        }
        params.split_mode = match self.split {
            Split::None => sys::LLAMA_SPLIT_MODE_NONE,
            Split::Layer => sys::LLAMA_SPLIT_MODE_LAYER,
            Split::Row => sys::LLAMA_SPLIT_MODE_ROW,
        };
        params.main_gpu = i32::try_from(self.main).unwrap_or(i32::MAX);
    }
}

/// Bytes of a model's blocks, and of what is outside them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Sizes {
    blocks: Vec<u64>,
    outside: u64,
}

impl Sizes {
    /// The sizes of tensors with these names and bytes.
    pub fn of<'a>(tensors: impl Iterator<Item = (&'a str, u64)>) -> Sizes {
        let mut sizes = Sizes::default();
        for (name, bytes) in tensors {
            let number = name
                .strip_prefix("blk.")
                .and_then(|rest| rest.split_once('.'));
            match number.and_then(|(number, _)| number.parse::<u16>().ok()) {
                Some(number) => {
                    let at = usize::from(number);
                    let len = sizes.blocks.len().max(at + 1);
                    sizes.blocks.resize(len, 0);
                    sizes.blocks[at] += bytes;
                }
                None => sizes.outside += bytes,
            }
        }
        sizes
    }

    /// Layers that fit into the free memory of devices, as llama.cpp counts them: the output layer is the
    /// first, and the last blocks follow. `None` where all do.
    fn fitting(&self, devices: &[Device]) -> Option<u32> {
        let room = |device: &Device| {
            let free = device.memory_free;
            free.saturating_sub(LEAST_LEFT.max(free / LEFT))
        };
        let mut room: u64 = devices.iter().map(room).sum();
        let all: u64 = self.blocks.iter().sum::<u64>() + self.outside;
        if all <= room || devices.is_empty() {
            return None;
        }
        let mut layers = 0;
        for bytes in std::iter::once(&self.outside).chain(self.blocks.iter().rev()) {
            let Some(rest) = room.checked_sub(*bytes) else {
                break;
            };
            room = rest;
            layers += 1;
        }
        Some(layers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn device(free: u64) -> Device {
        Device {
            name: "GPU0".into(),
            description: String::new(),
            offload: true,
            memory_free: free,
            memory_total: free,
        }
    }

    fn model() -> Sizes {
        let blocks = (0..10).map(|i| (format!("blk.{i}.ffn_up.weight"), GIB));
        let mut tensors: Vec<(String, u64)> = blocks.collect();
        tensors.push(("output.weight".into(), 2 * GIB));
        Sizes::of(tensors.iter().map(|(name, bytes)| (name.as_str(), *bytes)))
    }

    #[test]
    fn a_model_that_fits_goes_to_the_device_whole() {
        assert_eq!(model().fitting(&[device(16 * GIB)]), None);
        assert_eq!(model().fitting(&[device(8 * GIB), device(8 * GIB)]), None);
    }

    #[test]
    fn of_a_larger_model_the_last_layers_go_there() {
        // 7 GiB of 8: the output layer and five blocks.
        assert_eq!(model().fitting(&[device(8 * GIB)]), Some(6));
        assert_eq!(model().fitting(&[device(2 * GIB)]), Some(0));
        assert_eq!(
            model().fitting(&[device(4 * GIB), device(4 * GIB)]),
            Some(5)
        );
    }

    #[test]
    fn without_devices_nothing_is_decided() {
        assert_eq!(model().fitting(&[]), None);
    }

    #[test]
    fn a_device_that_is_not_there_is_named_with_those_that_are() {
        let placement = Placement {
            devices: Some(vec!["CUDA7".into()]),
            ..Placement::default()
        };
        let error = placement.used().err().map(|e| e.to_string());
        assert!(error.is_some_and(|e| e.contains("`CUDA7`") && e.contains("CPU")));
    }

    #[test]
    fn shares_of_more_devices_than_are_used_are_refused() {
        let placement = Placement {
            devices: Some(vec!["CPU".into()]),
            shares: vec![1.0, 2.0],
            ..Placement::default()
        };
        assert!(matches!(
            placement.used(),
            Err(LlamaError::Shares {
                shares: 2,
                devices: 1
            })
        ));
    }
}
