//! Making damage look genuine: digests are no secret, so a hostile file carries valid ones.

use dwindle_formats::container::{Container, key};
use dwindle_formats::gguf::{Array, Header, Value, read_header};
use sha2::{Digest as _, Sha256};

/// Gives a file the digests that its bytes call for, as far as it has room for them.
pub fn sign(bytes: &mut [u8]) {
    sign_header(bytes);
    sign_chunks(bytes);
    sign_header(bytes);
}

/// Sets the header's digest alone.
pub fn sign_header(bytes: &mut [u8]) {
    let Ok(header) = read_header(bytes) else {
        return;
    };
    let last = header.metadata.iter().last();
    let (Some((key::HEADER_DIGEST, Value::Array(Array::U8(old)))), Some(range)) =
        (last, header.value_ranges.last())
    else {
        return;
    };
    if old.len() != 32 {
        return;
    }
    let end = bytes.len().min(header.data_start as usize);
    bytes[range.end - 32..range.end].fill(0);
    let digest = Sha256::digest(&bytes[..end]);
    bytes[range.end - 32..range.end].copy_from_slice(&digest);
}

fn sign_chunks(bytes: &mut [u8]) {
    let Ok(container) = Container::read(bytes) else {
        return;
    };
    let header = &container.header;
    let Some(Value::Array(Array::U32(lengths))) = header.metadata.get(key::CHUNK_BYTES) else {
        return;
    };
    let mut lengths = lengths.iter();
    let mut slot = digests_start(header);
    for part in 0..container.plan.parts().count() {
        let range = container.range(part);
        let chunks = container.codecs(part).count();
        let mut at = range.start;
        for (i, len) in lengths.by_ref().take(chunks).enumerate() {
            let end = match i + 1 == chunks {
                true => range.end,
                false => at + *len as usize,
            };
            let digest = Sha256::digest(&bytes[at..end]);
            bytes[slot..slot + 32].copy_from_slice(&digest);
            slot += 32;
            at = end;
        }
    }
}

fn digests_start(header: &Header) -> usize {
    let mut keys = header.metadata.iter().map(|(k, _)| k);
    let index = keys.position(|k| k == key::CHUNK_DIGEST).unwrap_or(0);
    // An array's type and count stand before its elements.
    header.value_ranges[index].start + 12
}
