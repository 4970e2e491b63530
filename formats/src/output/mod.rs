//! Writes files so that they are complete or absent.
//!
//! - [`Claims`] checks what a command writes against what it reads, before any work.
//! - [`check_place`] refuses places that hold anything but a plain file.
//! - [`Kind`] refuses to replace a file of another kind.
//! - [`Draft`] is a file that appears under its name when it is complete, or not at all.
//! - [`Scratch`] is a folder for files that only one run needs.
//! - [`discard`] removes what is temporary when a process is made to end.
//!
//! Everything temporary is beside the output, has a name that begins with `.dwindle-`, and is
//! locked by its process. What has lost its process is removed when the next temporary is made
//! there.

mod abandoned;
mod claims;
mod draft;
mod kind;
mod live;
mod place;
mod scratch;

pub use claims::{ClaimError, Claims};
pub use draft::{Draft, write};
pub use kind::Kind;
pub use live::discard;
pub use place::{PlaceError, check_place, folder_of};
pub use scratch::Scratch;

pub(crate) use place::{is_named, open_own, permissions_of, sibling, sync_folder};
