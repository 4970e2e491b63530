//! What a running model keeps of a text, packed: codebooks are calibrated here, and what packing costs is measured.
//!
//! Packing itself needs no model and is a crate of its own, `kv`.

mod bench;
mod calibrate;
mod error;
mod eval;
mod files;
mod park;
mod receiver;
mod session;
mod shape;
mod timeline;
mod trial;

pub use bench::{BenchOptions, Benched, Seconds, bench};
pub use calibrate::{CHUNK, CodebookOptions, Progress, Stage, calibrate};
pub use error::CacheError;
pub use eval::{Candidate, EvalCacheOptions, Measured, evaluate};
pub use files::{Aim, How, open_codebook, pack_file, unpack_bytes, unpack_file};
pub use park::{Park, ParkOptions, Warn};
pub use receiver::load_session;
pub use session::{Session, is_packed, save_session};
pub use timeline::{Memory, Sample, Timeline};
pub use trial::{Continuations, Window};
