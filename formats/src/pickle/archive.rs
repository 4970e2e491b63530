//! PyTorch's files since 1.6: a zip archive of `data.pkl` and a file for each storage, uncompressed.

use std::io::{Cursor, Read as _};

use zip::{CompressionMethod, ZipArchive};

use super::state::{Places, tensors};
use super::{PickleError, PickledTensor, machine};
use crate::bounded::limits;

pub(super) fn read(bytes: &[u8]) -> Result<Vec<PickledTensor>, PickleError> {
    let failed = |e: &dyn std::fmt::Display| PickleError::Archive(e.to_string());
    let mut archive = ZipArchive::new(Cursor::new(bytes)).map_err(|e| failed(&e))?;
    let mut places = Places::new();
    let mut instructions = None;
    for index in 0..archive.len() {
        let mut file = archive.by_index(index).map_err(|e| failed(&e))?;
        // All lie in a folder that is named as the file was.
        let name = file.name().map_err(|e| failed(&e))?.into_owned();
        let Some((_, name)) = name.split_once('/') else {
            continue;
        };
        if name == "data.pkl" {
            let mut pickle = Vec::new();
            let most = limits::INDEX;
            let read = file.by_ref().take(most).read_to_end(&mut pickle);
            read.map_err(|e| failed(&e))?;
            instructions = Some(pickle);
        } else if let Some(key) = name.strip_prefix("data/") {
            let start = file.data_start().and_then(|at| usize::try_from(at).ok());
            let len = usize::try_from(file.size()).ok();
            let range = start.zip(len).and_then(|(start, len)| {
                let end = start.checked_add(len)?;
                (end <= bytes.len()).then_some(start..end)
            });
            match (range, file.compression()) {
                (Some(range), CompressionMethod::Stored) => {
                    places.insert(key.to_string(), range);
                }
                _ => {
                    return Err(PickleError::Archive(format!(
                        "`{name}` is compressed or cut off"
                    )));
                }
            }
        } else if name == "byteorder" {
            let mut order = String::new();
            let read = file.by_ref().take(16).read_to_string(&mut order);
            read.map_err(|e| failed(&e))?;
            if order.trim() != "little" {
                return Err(PickleError::Archive(format!(
                    "its bytes are in order `{order}`, expected little-endian"
                )));
            }
        }
    }
    let instructions =
        instructions.ok_or_else(|| PickleError::Archive("it has no `data.pkl`".into()))?;
    tensors(&machine::read(&instructions)?, &places)
}
