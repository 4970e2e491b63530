//! llama.cpp's states and their packed form: what is read is written again to the same bytes, and no damage harms.

#[path = "common/states.rs"]
mod states;

use dwindle_formats::packed::{Packed, PackedError, PackedWriter, Place};
use dwindle_formats::state::{Rows, Section, State, StateError, describe, described, read};
use peak_alloc::PeakAlloc;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// Bytes that reading some kilobytes may take.
const ALLOCATION_LIMIT: usize = 16 << 20;

#[test]
fn what_is_read_is_written_again_to_the_same_bytes() {
    for (name, kind) in states::kinds() {
        let (state, bytes) = states::state(&kind);
        let found = read(&bytes).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(found, state, "{name}");
        let mut again = found.clone();
        let frame = again.lay_out();
        assert_eq!((again, frame.len), (found, bytes.len()), "{name}");
        for (at, piece) in &frame.pieces {
            assert_eq!(&bytes[*at..at + piece.len()], piece, "{name} at {at}");
        }
    }
}

#[test]
fn a_description_is_the_state_without_its_rows() {
    for (name, kind) in states::kinds() {
        let (state, bytes) = states::state(&kind);
        let description = describe(&state, &bytes);
        let (found, pieces) = described(&description).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(found, state, "{name}");
        for section in &state.sections {
            if let Section::Recurrent { range, .. } = section {
                let piece = pieces.iter().find(|(at, _)| *at == range.start).unwrap();
                assert_eq!(piece.1, &bytes[range.clone()], "{name}");
            }
        }
        for end in 0..description.len() {
            assert!(
                described(&description[..end]).is_err(),
                "{name} up to {end}"
            );
        }
    }
}

#[test]
fn forms_of_the_same_memory_are_the_same_but_for_their_heads() {
    let kinds = states::kinds();
    let of = |name: &str| {
        let kind = kinds.iter().find(|(n, _)| *n == name).unwrap();
        states::state(&kind.1)
    };
    let (sequence, file) = of("sequence");
    let (bare, bytes) = of("bytes");
    let made = sequence
        .rewrapped(&file, bare.form.clone(), Vec::new())
        .unwrap();
    assert_eq!(read(&made).unwrap(), bare);
    let back = bare
        .rewrapped(&made, sequence.form.clone(), vec![1, 7, 9])
        .unwrap();
    assert_eq!(back, file);
    assert_eq!(
        bare.rewrapped(&bytes, of("old-sequence").0.form, Vec::new()),
        None
    );
}

#[test]
fn every_truncation_and_every_addition_is_refused() {
    for (name, kind) in states::kinds() {
        let (state, mut bytes) = states::state(&kind);
        let empty = state.sections.iter().all(|s| rows_of(s).is_none());
        for end in 0..bytes.len() {
            // What ends behind a section, its keys or a recurrent layer is the state of another model, or holds nothing.
            // llama.cpp, which knows its own, refuses it.
            let is_another = |found: &State| {
                let has_rows = found.sections.iter().any(|s| rows_of(s).is_some());
                (!has_rows && !empty)
                    || matches!(state.sections[0], Section::Recurrent { .. })
                    || found.sections.len() < state.sections.len()
                    || matches!(found.sections.last(), Some(Section::Recurrent { .. }))
                    || found
                        .sections
                        .iter()
                        .filter_map(rows_of)
                        .any(|rows| rows.values.is_empty())
            };
            let found = read(&bytes[..end]);
            assert!(
                found.as_ref().map_or(true, is_another),
                "{name} up to {end}"
            );
        }
        bytes.push(0);
        assert!(read(&bytes).is_err(), "{name} and a byte");
    }
}

fn rows_of(section: &Section) -> Option<&Rows> {
    match section {
        Section::Attention(attention) => attention.streams.iter().find_map(|s| s.rows.as_ref()),
        Section::Recurrent { .. } => None,
    }
}

#[test]
fn errors_say_what_is_wrong() {
    assert_eq!(read(b"GGUFxxxx"), Err(StateError::Magic(0x4655_4747)));
    assert!(matches!(read(b"gg"), Err(StateError::Short { .. })));
    let (_, mut bytes) = states::state(&states::kinds()[0].1);
    bytes[4] = 9;
    let error = read(&bytes).unwrap_err().to_string();
    assert!(error.contains("version is 9, expected 3 or 4"), "{error}");
}

/// Flips bits, and puts large numbers in the place of counts.
fn damage(rng: &mut ChaCha8Rng, bytes: &mut [u8]) {
    let at = rng.random_range(0..bytes.len());
    match rng.random_range(0..3) {
        0 => bytes[at] ^= 1 << rng.random_range(0..8),
        1 => bytes[at] = rng.random(),
        _ => {
            let number: u32 = [u32::MAX, 1 << 31, 1 << 24, 0][rng.random_range(0..4)];
            let begin = at.min(bytes.len().saturating_sub(4));
            let end = bytes.len().min(begin + 4);
            bytes[begin..end].copy_from_slice(&number.to_le_bytes()[..end - begin]);
        }
    }
}

/// Whether everything is within the bytes.
fn fits(state: &State, len: usize) -> bool {
    state.sections.iter().all(|section| match section {
        Section::Recurrent { range, .. } => range.end <= len,
        Section::Attention(attention) => attention.streams.iter().all(|stream| {
            let rows = stream.rows.iter();
            let mut parts = rows.flat_map(|r| r.keys.iter().chain(&r.values));
            parts.all(|p| p.at + p.row_bytes() * stream.positions.len() <= len)
        }),
    })
}

#[test]
fn ten_thousand_damaged_states_do_no_harm() {
    let kinds = states::kinds();
    let mut accepted = 0;
    for index in 0..10_000u64 {
        let mut rng = ChaCha8Rng::seed_from_u64(index);
        let (_, mut bytes) = states::state(&kinds[index as usize % kinds.len()].1);
        for _ in 0..rng.random_range(1..4) {
            damage(&mut rng, &mut bytes);
        }
        MEMORY.reset_peak_usage();
        let before = MEMORY.current_usage();
        if let Ok(state) = read(&bytes) {
            assert!(fits(&state, bytes.len()), "{index}");
            accepted += 1;
        }
        let taken = MEMORY.peak_usage().saturating_sub(before);
        assert!(taken < ALLOCATION_LIMIT, "{index} took {taken} bytes");
    }
    assert!((2000..9000).contains(&accepted), "{accepted}");
}

/// A packed state whose records hold some bytes.
fn packed(bytes: &[u8], payload: &[u8]) -> Vec<u8> {
    let state = read(bytes).unwrap();
    let mut writer = PackedWriter::new(Vec::new(), b"{}", &describe(&state, bytes)).unwrap();
    for (s, section) in state.sections.iter().enumerate() {
        let Section::Attention(attention) = section else {
            continue;
        };
        for (t, stream) in attention.streams.iter().enumerate() {
            for first in (0..stream.positions.len()).step_by(2) {
                let place = Place {
                    section: s as u32,
                    stream: t as u32,
                    first: first as u32,
                    cells: (stream.positions.len() - first).min(2) as u32,
                };
                writer.record(place, payload).unwrap();
            }
        }
    }
    let (out, written) = writer.finish().unwrap();
    assert_eq!(out.len() as u64, written);
    out
}

#[test]
fn packed_states_come_back_and_every_damage_is_noticed() {
    for (name, kind) in states::kinds() {
        let (state, bytes) = states::state(&kind);
        let file = packed(&bytes, b"some bytes");
        let whole = Packed::read(&file).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(
            (whole.settings, &whole.state),
            (&b"{}"[..], &state),
            "{name}"
        );
        for record in &whole.records {
            assert_eq!(whole.payload(record).unwrap(), b"some bytes");
        }
        let notices = |bytes: &[u8]| match Packed::read(bytes) {
            Err(_) => true,
            Ok(packed) => packed.records.iter().any(|r| packed.payload(r).is_err()),
        };
        for end in 0..file.len() {
            assert!(notices(&file[..end]), "{name} up to {end}");
        }
        for at in 0..file.len() {
            let mut damaged = file.clone();
            damaged[at] ^= 0x10;
            assert!(notices(&damaged), "{name}, byte {at}");
        }
    }
}

#[test]
fn records_that_lack_cells_or_stand_otherwise_are_refused() {
    let (state, bytes) = states::state(&states::kinds()[0].1);
    let place = |first, cells| Place {
        section: 0,
        stream: 0,
        first,
        cells,
    };
    for places in [
        &[][..],
        &[place(0, 4)],
        &[place(0, 6)],
        &[place(1, 4), place(0, 1)],
        &[place(0, 5), place(5, 1)],
    ] {
        let mut writer = PackedWriter::new(Vec::new(), b"{}", &describe(&state, &bytes)).unwrap();
        places
            .iter()
            .for_each(|place| writer.record(*place, b"x").unwrap());
        let (file, _) = writer.finish().unwrap();
        let error = Packed::read(&file).unwrap_err();
        assert!(
            !matches!(error, PackedError::Magic | PackedError::Version { .. }),
            "{error}"
        );
    }
}
