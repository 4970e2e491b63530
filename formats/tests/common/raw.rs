//! GGUF files put together byte by byte, so that they can be wrong.

use dwindle_formats::gguf::type_id;

/// A file of these metadata entries, tensor descriptions and bytes of zero data.
pub fn gguf(entries: &[Vec<u8>], tensors: &[Vec<u8>], data: usize) -> Vec<u8> {
    let mut out = start(3, tensors.len() as u64, entries.len() as u64);
    out.extend(entries.concat());
    out.extend(tensors.concat());
    out.resize(out.len().next_multiple_of(32) + data, 0);
    out
}

/// The first 24 bytes of a file.
pub fn start(version: u32, tensors: u64, entries: u64) -> Vec<u8> {
    let mut out = b"GGUF".to_vec();
    out.extend(version.to_le_bytes());
    out.extend(tensors.to_le_bytes());
    out.extend(entries.to_le_bytes());
    out
}

pub fn string(text: &[u8]) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text].concat()
}

pub fn entry(key: &str, ty: u32, value: &[u8]) -> Vec<u8> {
    [&string(key.as_bytes()), &ty.to_le_bytes()[..], value].concat()
}

pub fn array(key: &str, ty: u32, count: u64, elements: &[u8]) -> Vec<u8> {
    let value = [&ty.to_le_bytes()[..], &count.to_le_bytes(), elements].concat();
    entry(key, type_id::ARRAY, &value)
}

pub fn tensor(name: &str, shape: &[u64], ty: u32, offset: u64) -> Vec<u8> {
    let mut out = string(name.as_bytes());
    out.extend((shape.len() as u32).to_le_bytes());
    shape.iter().for_each(|n| out.extend(n.to_le_bytes()));
    out.extend(ty.to_le_bytes());
    out.extend(offset.to_le_bytes());
    out
}
