//! Parks the texts that a server has read: packed, in memory and on disk, until others begin alike.
//!
//! A text that has ended is copied out of its context and serves at once. A thread packs it, one after the other, and writes
//! it into a folder, if there is one. Those that were not used for the longest time go first.

mod folder;
mod options;
mod packer;
mod store;

use std::sync::Arc;

use dwindle_formats::state::read;

use self::folder::Folder;
use self::options::LEAST;
pub use self::options::{ParkOptions, Warn};
use self::packer::Packer;
use self::store::{Found, Limits, Shared};
use super::error::CacheError;
use super::receiver::{Receiver, can_be_cut};
use super::session::{Session, saved_state};
use crate::kv::KvError;
use crate::kv::codebook::Codebook;
use crate::llama::context::Context;
use crate::llama::model::Token;
use crate::llama::recall::Recall;
use crate::mapped::Mapping;

/// Parked texts.
pub struct Park {
    shared: Arc<Shared>,
    packer: Packer,
    codebook: Option<Arc<Codebook>>,
    receiver: Option<Receiver>,
    warn: Warn,
}

impl Park {
    /// Finds what is in the folder, and starts the thread that packs.
    ///
    /// # Errors
    /// The folder can't be made or read, or the codebook can't be used, or there is no thread.
    pub fn new(options: ParkOptions) -> Result<Park, CacheError> {
        let limits = Limits {
            memory: options.memory,
            disk: options.folder.as_ref().map_or(0, |(_, most)| *most),
        };
        let warn = options.warn;
        // What one codebook has packed no other unpacks.
        let codebook = options.codebook.as_ref().map(|(codebook, _)| codebook);
        let key = format!("{} {:?}", options.model, codebook.map(Codebook::digest));
        let key = crate::statistics::digest(key.as_bytes());
        let folder = options.folder.map(|(path, _)| path);
        let folder = folder.map(|path| Folder::open(&path, &key));
        let folder = folder.transpose()?;
        let shared = Arc::new(Shared::new(limits));
        if let Some(folder) = &folder {
            for (parked, file) in folder.list(&warn)? {
                shared.store().add_file(parked, file);
            }
            folder.remove(&shared.store().trim());
        }
        let (codebook, aim) = options.codebook.unzip();
        let codebook = codebook.map(Arc::new);
        let packing = codebook.clone().zip(aim);
        let packer = Packer::start(Arc::clone(&shared), folder, packing, Arc::clone(&warn))?;
        Ok(Park {
            shared,
            packer,
            codebook,
            receiver: None,
            warn,
        })
    }

    /// What was found, in the form that the context takes.
    fn session(
        &mut self,
        context: &mut Context<'_>,
        sequence: usize,
        found: &Found,
    ) -> Result<Session, CacheError> {
        let receiver = match self.receiver.take() {
            Some(receiver) => receiver,
            None => Receiver::of(context, sequence)?,
        };
        let receiver = self.receiver.insert(receiver);
        let codebook = self.codebook.as_deref();
        if let Some(path) = &found.file {
            folder::use_now(path);
        }
        match (&found.memory, &found.file) {
            (Some(bytes), _) => receiver.session(bytes, codebook),
            (None, Some(path)) => receiver.session(&Mapping::open(path)?, codebook),
            (None, None) => Err(CacheError::NoTokens),
        }
    }

    /// Copies a text out of its sequence.
    fn park(
        &mut self,
        context: &mut Context<'_>,
        sequence: usize,
        text: &[Token],
    ) -> Result<(), CacheError> {
        let room = context.n_ctx() as usize;
        if context.is_broken() || self.shared.store().serves(text, room) {
            return Ok(());
        }
        let most = self.shared.store().limits().memory;
        let len = context.sequence_bytes(sequence) as u64;
        if len > most {
            let tokens = text.len();
            return Err(CacheError::NoRoom { tokens, len, most });
        }
        let state = saved_state(context, sequence, text)?;
        let is_whole = can_be_cut(&read(&state).map_err(KvError::from)?);
        let mut store = self.shared.store();
        let id = store.add(text, state, is_whole);
        let none = store.trim();
        debug_assert!(none.is_empty(), "no file was added");
        drop(store);
        self.packer.pack(id);
        Ok(())
    }
}

impl Recall for Park {
    fn recall(&mut self, context: &mut Context<'_>, sequence: usize, prompt: &[Token]) -> usize {
        let found = self.shared.store().find(prompt, context.n_ctx() as usize);
        let Some(found) = found else {
            return 0;
        };
        let session = self.session(context, sequence, &found);
        match session.and_then(|s| s.restore(context, sequence, prompt)) {
            Ok(kept) => kept,
            Err(error) => {
                context.forget(sequence);
                let name = found.file.map(|path| path.display().to_string());
                let name = name.unwrap_or_else(|| "a parked text".into());
                (self.warn)(&format!("{name}: {error}; it is read again"));
                match error {
                    CacheError::Io(e) if e.kind() == std::io::ErrorKind::NotFound => {
                        self.shared.store().lose(found.id);
                    }
                    // What can't be read or restored now may be sound.
                    CacheError::Io(_) | CacheError::Llama(_) => {}
                    _ => self.shared.store().forget(found.id),
                }
                0
            }
        }
    }

    fn keep(&mut self, context: &mut Context<'_>, sequence: usize, text: &[Token]) {
        if text.len() < LEAST {
            return;
        }
        if let Err(error) = self.park(context, sequence, text) {
            (self.warn)(&format!("a text is not parked: {error}"));
        }
    }
}
