//! Loads a model in which operands replace some of the weights.

use std::collections::HashSet;
use std::time::Instant;

use llama_cpp_sys_2 as sys;

use super::backend::{describe, raw_devices};
use super::device::Devices;
use super::device::weights::{Fetch, Weights};
use super::error::{FeedError, LlamaError};
use super::feed::{TensorFeed, with_stream};
use super::model::{Model, ModelOptions, dwindle_load_stream, load_raw, params};
use super::placement::{Placement, Split};

impl Model {
    /// As [`Self::load_feed`], of a model some of whose weights are computed with operands of their
    /// own, which `fetch` makes. Of those weights the feed's bytes are read and ignored.
    ///
    /// # Errors
    /// As [`Self::load_feed`]; what `fetch` returns.
    pub fn load_contracted(
        name: &str,
        feed: TensorFeed<'_>,
        weights: Weights,
        fetch: Fetch,
        options: &ModelOptions,
    ) -> Result<Model, LlamaError> {
        let failed = |source| LlamaError::Feed {
            name: name.to_string(),
            source,
        };
        let feed = feed.admitted(name)?;
        let names: HashSet<String> = feed.names().map(str::to_string).collect();
        let kept = |name: &str| !weights.contractions.contains_key(name);
        let size = weights.bytes() + feed.bytes_of(kept);
        let placement = &options.placement;
        if placement.split == Split::Row {
            return Err(LlamaError::FactorsByRow {
                name: name.to_string(),
            });
        }
        let sizes = feed.sizes(|name| weights.bytes_of(name));
        let devices = Devices::new(&inner_devices(placement)?, weights, names, fetch);
        let mut list: Vec<_> = devices.raw().collect();
        list.push(std::ptr::null_mut());
        let shares = devices.shares(&placement.shares);
        let mut placed = placement.place(&sizes)?.on(list, shares);
        let params = params(&mut placed, sys::LLAMA_LOAD_MODE_NONE);
        let start = Instant::now();
        let load = |file: *mut std::ffi::c_void| {
            // SAFETY: as in `load_feed`; the devices outlive the model, which drops them last.
            load_raw(|model, failure| unsafe { dwindle_load_stream(file, &params, model, failure) })
        };
        let (loaded, error) = with_stream(feed, load).map_err(failed)?;
        let model = Model::from_raw(loaded, start, true);
        let error = error.or(devices.loaded().map(FeedError::Operand));
        if let Some(error) = error {
            // The model goes before its devices do.
            drop(model);
            return Err(failed(error));
        }
        let mut model = match model {
            Ok(model) => model,
            Err(reason) => {
                // What llama.cpp gave up in the middle of loading may refer to them.
                std::mem::forget(devices);
                return Err(LlamaError::Load {
                    name: name.to_string(),
                    reason,
                });
            }
        };
        model.size = Some(size);
        model.devices = Some(devices);
        give_back();
        model.with_adapters(options)
    }

    /// Contracted weights that graphs so far have used in a way that needs the whole matrix. A
    /// graph that does so is not computed.
    pub fn used_whole(&self) -> Vec<String> {
        self.devices
            .as_ref()
            .map_or(Vec::new(), Devices::used_whole)
    }
}

/// The devices to be wrapped: those that were chosen, or all that layers can be offloaded to, and
/// the CPU behind them.
fn inner_devices(placement: &Placement) -> Result<Vec<sys::ggml_backend_dev_t>, LlamaError> {
    let is_cpu = |dev: &sys::ggml_backend_dev_t| describe(*dev).name == "CPU";
    let mut inner = placement.used()?;
    inner.retain(|dev| !is_cpu(dev));
    inner.extend(raw_devices().find(is_cpu));
    Ok(inner)
}

/// Returns to the system what loading has used and freed: the C library would keep it.
fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: the call only touches the allocator's own free memory.
    unsafe {
        libc::malloc_trim(0);
    }
}
