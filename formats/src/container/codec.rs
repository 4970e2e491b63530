//! Payload codecs: how the bytes of one chunk are stored.

use crate::gguf::TensorType;

/// zstd level of every frame: the entropy stage does the work on weights, and higher levels
/// search for matches that are not there.
const LEVEL: i32 = 1;
/// How much of a chunk is tried with every codec before one is chosen.
const SAMPLE_BYTES: usize = 1 << 16;

/// How the chunks of a part are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Codec {
    /// As they are.
    Raw = 0,
    /// A zstd frame.
    Zstd = 1,
    /// 16-bit elements, rotated and split into byte planes, each a zstd frame.
    Planes = 2,
    /// A bitmap of non-zero elements, and these packed.
    Bitmap = 3,
}

/// A stored chunk that does not decode.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages say what the fields are
pub enum CodecError {
    #[error("payload codec {0} is not known to this version of dwindle")]
    Unknown(u8),
    #[error("payload codec {codec:?} does not apply to element type {ty}")]
    Type { codec: Codec, ty: TensorType },
    #[error("the stored chunk does not decode to {expected} bytes: {problem}")]
    Decode {
        expected: usize,
        problem: &'static str,
    },
}

impl Codec {
    /// The codec of an id.
    ///
    /// # Errors
    /// [`CodecError::Unknown`].
    pub fn from_id(id: u8) -> Result<Codec, CodecError> {
        match id {
            0 => Ok(Codec::Raw),
            1 => Ok(Codec::Zstd),
            2 => Ok(Codec::Planes),
            3 => Ok(Codec::Bitmap),
            other => Err(CodecError::Unknown(other)),
        }
    }

    /// The codec's name as reports show it.
    pub fn name(self) -> &'static str {
        match self {
            Codec::Raw => "raw",
            Codec::Zstd => "zstd",
            Codec::Planes => "planes",
            Codec::Bitmap => "bitmap",
        }
    }

    /// Whether elements of this type can be stored this way.
    ///
    /// # Errors
    /// [`CodecError::Type`].
    pub fn applies_to(self, ty: TensorType) -> Result<(), CodecError> {
        let width = element_width(ty);
        let fits = match self {
            Codec::Raw | Codec::Zstd => true,
            Codec::Planes => width == Some(2),
            Codec::Bitmap => matches!(width, Some(2 | 4)),
        };
        if fits {
            Ok(())
        } else {
            Err(CodecError::Type { codec: self, ty })
        }
    }

    /// Stores one chunk. A codec that does not apply to the type leaves the bytes as they are.
    fn encode(self, ty: TensorType, chunk: &[u8]) -> Vec<u8> {
        match (self, element_width(ty)) {
            (Codec::Zstd, _) => compress(chunk),
            (Codec::Planes, Some(2)) => encode_planes(chunk),
            (Codec::Bitmap, Some(2)) => encode_bitmap::<2>(chunk),
            (Codec::Bitmap, Some(4)) => encode_bitmap::<4>(chunk),
            _ => chunk.to_vec(),
        }
    }

    /// Restores one chunk into `out`, which has the decoded length.
    ///
    /// # Errors
    /// When the stored bytes do not decode to exactly that many bytes.
    pub fn decode(self, ty: TensorType, stored: &[u8], out: &mut [u8]) -> Result<(), CodecError> {
        self.applies_to(ty)?;
        let expected = out.len();
        let decoded = match (self, element_width(ty)) {
            (Codec::Raw, _) if stored.len() == out.len() => {
                out.copy_from_slice(stored);
                Ok(())
            }
            (Codec::Raw, _) => Err("its length differs"),
            (Codec::Zstd, _) => decompress(stored, out),
            (Codec::Planes, _) => decode_planes(stored, out),
            (Codec::Bitmap, Some(2)) => decode_bitmap::<2>(stored, out),
            (Codec::Bitmap, _) => decode_bitmap::<4>(stored, out),
        };
        decoded.map_err(|problem| CodecError::Decode { expected, problem })
    }

    /// Stores a chunk with the codec that makes its beginning smallest, or `None` when nothing
    /// saves at least two percent. A function of the bytes alone.
    pub fn choose_and_encode(ty: TensorType, chunk: &[u8]) -> Option<(Codec, Vec<u8>)> {
        let candidates: &[Codec] = match element_width(ty) {
            Some(2) => &[Codec::Planes, Codec::Bitmap, Codec::Zstd],
            Some(4) => &[Codec::Bitmap, Codec::Zstd],
            _ => &[Codec::Zstd],
        };
        let sample = &chunk[..chunk.len().min(SAMPLE_BYTES)];
        let codec = candidates
            .iter()
            .map(|codec| (codec.encode(ty, sample).len(), *codec as u8, *codec))
            .filter(|(len, ..)| *len < worthwhile(sample.len()))
            .min()?
            .2;
        let stored = codec.encode(ty, chunk);
        (stored.len() < worthwhile(chunk.len())).then_some((codec, stored))
    }
}

/// The length below which a codec has earned its decoding time.
fn worthwhile(len: usize) -> usize {
    len - len / 50
}

/// Bytes of one plain number, or `None` for block-quantized types.
fn element_width(ty: TensorType) -> Option<usize> {
    (!ty.is_quantized()).then_some(ty.block_bytes() as usize)
}

fn compress(bytes: &[u8]) -> Vec<u8> {
    // The buffer is as large as zstd's own bound, so compression has nothing left to fail on.
    zstd::bulk::compress(bytes, LEVEL).expect("zstd compresses into a buffer of its own bound")
}

fn decompress(stored: &[u8], out: &mut [u8]) -> Result<(), &'static str> {
    match zstd::bulk::decompress_to_buffer(stored, out) {
        Ok(n) if n == out.len() => Ok(()),
        Ok(_) => Err("the zstd frame is too short"),
        Err(_) => Err("the zstd frame is damaged or too long"),
    }
}

/// Splits `u32 length │ first │ second`.
fn split_frames(stored: &[u8]) -> Result<(&[u8], &[u8]), &'static str> {
    let (len, rest) = stored
        .split_first_chunk::<4>()
        .ok_or("it is too short for a frame length")?;
    let len = u32::from_le_bytes(*len) as usize;
    rest.split_at_checked(len)
        .ok_or("its first frame is longer than the chunk")
}

fn join_frames(first: &[u8], second: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(4 + first.len() + second.len());
    out.extend((first.len() as u32).to_le_bytes());
    out.extend(first);
    out.extend(second);
    out
}

fn encode_planes(chunk: &[u8]) -> Vec<u8> {
    let (elements, _) = chunk.as_chunks::<2>();
    let mut high = vec![0; elements.len()];
    let mut low = vec![0; elements.len()];
    for ((e, h), l) in elements.iter().zip(&mut high).zip(&mut low) {
        [*l, *h] = u16::from_le_bytes(*e).rotate_left(1).to_le_bytes();
    }
    join_frames(&compress(&high), &compress(&low))
}

fn decode_planes(stored: &[u8], out: &mut [u8]) -> Result<(), &'static str> {
    let (high_frame, low_frame) = split_frames(stored)?;
    let n = out.len() / 2;
    let mut planes = vec![0; 2 * n];
    let (high, low) = planes.split_at_mut(n);
    decompress(high_frame, high)?;
    decompress(low_frame, low)?;
    let (elements, _) = out.as_chunks_mut::<2>();
    for ((e, h), l) in elements.iter_mut().zip(&*high).zip(&*low) {
        *e = u16::from_le_bytes([*l, *h]).rotate_right(1).to_le_bytes();
    }
    Ok(())
}

fn encode_bitmap<const WIDTH: usize>(chunk: &[u8]) -> Vec<u8> {
    let (elements, _) = chunk.as_chunks::<WIDTH>();
    let mut bitmap = vec![0u8; elements.len().div_ceil(8)];
    let mut values = Vec::new();
    for (i, element) in elements.iter().enumerate() {
        if *element != [0; WIDTH] {
            bitmap[i / 8] |= 1 << (i % 8);
            values.extend(element);
        }
    }
    let values = if WIDTH == 2 {
        encode_planes(&values)
    } else {
        compress(&values)
    };
    join_frames(&compress(&bitmap), &values)
}

fn decode_bitmap<const WIDTH: usize>(stored: &[u8], out: &mut [u8]) -> Result<(), &'static str> {
    let (bitmap_frame, values_frame) = split_frames(stored)?;
    let (elements, _) = out.as_chunks_mut::<WIDTH>();
    let mut bitmap = vec![0u8; elements.len().div_ceil(8)];
    decompress(bitmap_frame, &mut bitmap)?;
    if bitmap
        .last()
        .is_some_and(|last| elements.len() % 8 != 0 && last >> (elements.len() % 8) != 0)
    {
        return Err("its bitmap is longer than the chunk");
    }
    let set: usize = bitmap.iter().map(|b| b.count_ones() as usize).sum();
    let mut values = vec![0u8; set * WIDTH];
    if WIDTH == 2 {
        decode_planes(values_frame, &mut values)?;
    } else {
        decompress(values_frame, &mut values)?;
    }
    let (values, _) = values.as_chunks::<WIDTH>();
    let mut next = values.iter();
    for (i, element) in elements.iter_mut().enumerate() {
        *element = [0; WIDTH];
        if bitmap[i / 8] >> (i % 8) & 1 == 1
            && let Some(value) = next.next()
        {
            *element = *value;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_codec_restores_its_input(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..4096),
            zeros in 0usize..4096,
        ) {
            bytes.truncate(bytes.len() / 4 * 4);
            let zeros = zeros.min(bytes.len()) / 4 * 4;
            bytes[..zeros].fill(0);
            for ty in [TensorType::F16, TensorType::F32, TensorType::Q8_0] {
                for id in 0..4 {
                    let codec = Codec::from_id(id).unwrap();
                    if codec.applies_to(ty).is_err() { continue }
                    let stored = codec.encode(ty, &bytes);
                    let mut out = vec![7; bytes.len()];
                    codec.decode(ty, &stored, &mut out).unwrap();
                    prop_assert_eq!(&out, &bytes);
                }
            }
        }

        #[test]
        fn damaged_chunks_never_panic(
            stored in proptest::collection::vec(any::<u8>(), 0..256),
            len in 0usize..512,
        ) {
            let mut out = vec![0; len / 4 * 4];
            for id in 0..4 {
                let codec = Codec::from_id(id).unwrap();
                for ty in [TensorType::BF16, TensorType::F32] {
                    let _ = codec.decode(ty, &stored, &mut out);
                }
            }
        }
    }

    #[test]
    fn a_bf16_gaussian_shrinks_to_two_thirds() {
        // Sums of twelve uniforms from a fixed linear congruence: near enough to weights.
        let mut state = 1u64;
        let mut uniform = || {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (state >> 40) as f32 / (1 << 24) as f32
        };
        let bytes: Vec<u8> = (0..1 << 19)
            .flat_map(|_| {
                let w: f32 = (0..12).map(|_| uniform()).sum::<f32>() - 6.0;
                half::bf16::from_f32(w * 0.02).to_le_bytes()
            })
            .collect();
        let (codec, stored) = Codec::choose_and_encode(TensorType::BF16, &bytes).unwrap();
        assert_eq!(codec, Codec::Planes);
        assert!(stored.len() * 100 < bytes.len() * 68, "{}", stored.len());
    }
}
