//! Options of `serve` about texts that have ended.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;

use super::Failure;
use super::cache::codebook_of;
use super::output::{above_zero, parse_bytes};
use crate::cache::{Aim, Park, ParkOptions};
use crate::kv::codebook::Codebook;
use crate::llama::model::Model;
use crate::llama::recall::{Forgetful, Recall};
use crate::runtime::{identity, key};

/// What becomes of texts that have ended.
#[derive(Debug, Clone, Args)]
pub struct Parking {
    /// Park texts that have ended, packed, in so much memory: another that begins alike is not read again
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    park: Option<u64>,
    /// Park texts in a folder, too, where the next server finds them
    #[arg(long, value_name = "DIR", requires = "park")]
    park_dir: Option<PathBuf>,
    /// The most bytes of a model's texts in that folder
    #[arg(long, value_name = "SIZE", requires = "park_dir", default_value = "16GiB", value_parser = parse_bytes)]
    park_disk: u64,
    /// Park texts by a codebook of `dwindle cache calibrate` [default: bit by bit]
    #[arg(long, value_name = "FILE", requires = "park")]
    codebook: Option<PathBuf>,
    /// With a codebook: how much smaller parked texts are than in F16
    #[arg(long, value_name = "N", requires = "codebook", default_value_t = 12.0, value_parser = above_zero)]
    park_ratio: f64,
}

impl Parking {
    /// The codebook, before the model is loaded.
    ///
    /// # Errors
    /// The file is none, or of another model.
    pub fn codebook(&self, model: &Path) -> Result<Option<Codebook>, Failure> {
        codebook_of(model, self.codebook.as_ref())
    }

    /// The memory of a server of this model.
    ///
    /// # Errors
    /// The folder can't be used.
    pub fn memory(
        &self,
        (file, model): (&Path, &Model),
        adapters: &[PathBuf],
        codebook: Option<Codebook>,
    ) -> Result<Box<dyn Recall + Send>, Failure> {
        let Some(memory) = self.park else {
            return Ok(Box::new(Forgetful));
        };
        if model.embeds() {
            return Err(Failure::Usage(
                "`--park` keeps texts to go on from, and this model only embeds them".into(),
            ));
        }
        let folder = self.park_dir.as_ref();
        Ok(Box::new(Park::new(ParkOptions {
            memory,
            folder: folder.map(|path| (path.clone(), self.park_disk)),
            model: key(file, &identity(file)?, adapters)?,
            codebook: codebook.map(|codebook| (codebook, Aim::Ratio(self.park_ratio))),
            // A reader that has gone away is no reason to stop.
            warn: Arc::new(|words| drop(writeln!(std::io::stderr(), "warning: {words}"))),
        })?))
    }
}
