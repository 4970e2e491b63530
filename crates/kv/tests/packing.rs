//! States of every kind through every way of packing, into every form that llama.cpp may want.

#[path = "../../../formats/tests/common/states.rs"]
mod states;

use dwindle_formats::gguf::TensorType;
use dwindle_formats::packed::{Packed, PackedWriter};
use dwindle_formats::state::{Form, Section, State, read};
use dwindle_kv::codebook::{
    Codebook, Cut, Finer, Geometry, Metrics, Moments, Origin, Places, Trial,
};
use dwindle_kv::{
    Cells, Encoder, KvError, Pairing, Ranks, Rotary, Target, Turns, Unpacker, Way, angles, pack,
    step_for_ratio,
};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use states::Kind;

fn packed(bytes: &[u8], way: Way<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    let packing = pack(bytes, way, 2, Some([64, 64]), &mut out, &mut |_| ()).unwrap();
    assert_eq!(packing.bytes, out.len() as u64);
    out
}

fn unpacked(file: &[u8], codebook: Option<&Codebook>, target: &Target) -> Result<Vec<u8>, KvError> {
    let packed = Packed::read(file)?;
    let state = std::cell::RefCell::new(Vec::new());
    Unpacker::new(&packed, codebook)?.unpack(
        target,
        &mut |len| {
            state.borrow_mut().resize(len, 0);
            Ok(())
        },
        &mut |at, bytes| {
            state.borrow_mut()[at..at + bytes.len()].copy_from_slice(bytes);
            Ok(())
        },
        &mut |_| (),
    )?;
    Ok(state.into_inner())
}

#[test]
fn every_kind_comes_back_bit_by_bit() {
    for (name, kind) in states::kinds() {
        let (_, bytes) = states::state(&kind);
        let file = packed(&bytes, Way::Lossless);
        assert_eq!(
            unpacked(&file, None, &Target::default()).unwrap(),
            bytes,
            "{name}"
        );
    }
}

/// The same state in another form: what a target leads to.
fn aimed(target: &Target) -> Vec<u8> {
    let (_, bytes) = states::state(&states::kinds()[0].1);
    unpacked(&packed(&bytes, Way::Lossless), None, target).unwrap()
}

#[test]
fn targets_are_what_llama_cpp_would_have_saved() {
    let plain = states::kinds()[0].1.clone();
    let of = |kind: Kind| states::state(&kind).0;
    for (target, kind) in [
        (
            Target {
                is_transposed: Some(true),
                ..Target::default()
            },
            Kind {
                is_transposed: true,
                ..plain.clone()
            },
        ),
        (
            Target {
                streams: Some(3),
                ..Target::default()
            },
            Kind {
                cells: vec![vec![5, 0, 0]],
                ..plain.clone()
            },
        ),
        (
            Target {
                version: Some(3),
                ..Target::default()
            },
            Kind {
                form: Form::Sequence { version: 3 },
                ..plain.clone()
            },
        ),
        (
            Target {
                ty: Some(TensorType::F32),
                ..Target::default()
            },
            Kind {
                ty: TensorType::F32,
                value_ty: TensorType::F32,
                ..plain.clone()
            },
        ),
    ] {
        let bytes = aimed(&target);
        assert_eq!(read(&bytes).unwrap(), of(kind), "{target:?}");
        // And back again.
        let back = Target {
            ty: Some(TensorType::F16),
            is_transposed: Some(false),
            streams: Some(1),
            version: Some(4),
            turns: Turns::Fitting,
        };
        let again = unpacked(&packed(&bytes, Way::Lossless), None, &back).unwrap();
        assert_eq!(again, states::state(&plain).1, "{target:?}");
    }
}

#[test]
fn targets_that_do_not_fit_are_refused() {
    let (_, bytes) = states::state(&states::kinds()[0].1);
    let file = packed(&bytes, Way::Lossless);
    for (target, says) in [
        (
            Target {
                ty: Some(TensorType::Q4_K),
                ..Target::default()
            },
            "blocks are longer",
        ),
        (
            Target {
                streams: Some(0),
                ..Target::default()
            },
            "fewer streams",
        ),
    ] {
        let error = unpacked(&file, None, &target).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}

fn geometry() -> Geometry {
    let rotary = Rotary {
        pairing: Pairing::Halves,
        first: 0,
        angles: angles(32, (10000.0, 1.0), None, None),
    };
    Geometry {
        keys: vec![64, 128],
        values: vec![64, 128],
        key_head: 64,
        value_head: 64,
        rotary: Some(vec![rotary; 2]),
    }
}

/// A codebook of states of this kind.
fn codebook() -> Codebook {
    let mut moments = Moments::new(&geometry(), 1 << 16);
    let kind = Kind::plain(Form::Sequence { version: 4 }, 300);
    let (state, bytes) = states::state(&kind);
    moments.add(cells(&state, &bytes));
    let identity = |heads: usize| -> Vec<f32> {
        (0..heads * 64 * 64)
            .map(|i| if i % (64 * 64) % 65 == 0 { 1.0 } else { 0.0 })
            .collect()
    };
    let metrics = Metrics {
        keys: vec![identity(1), identity(2)],
        values: vec![identity(1), identity(2)],
    };
    let ones = [1.0; 2];
    let origin = Origin {
        model: "m".into(),
        architecture: "llama".into(),
        text: "t".into(),
        tokens: 300,
    };
    let cut = Cut {
        is_single: false,
        bytes: u64::MAX,
    };
    let mut codebook = moments
        .codebook(&metrics, (&ones, &ones), cut, origin)
        .unwrap();
    codebook.places = Places {
        exact: 1,
        first: vec![Finer {
            within: 2,
            factor: 0.5,
        }],
        last: vec![Finer {
            within: 3,
            factor: 0.25,
        }],
    };
    codebook.trials = vec![
        Trial {
            step: 0.1,
            ratio: 4.0,
            kld: 0.001,
        },
        Trial {
            step: 0.2,
            ratio: 8.0,
            kld: 0.004,
        },
    ];
    codebook
}

fn cells(state: &State, bytes: &[u8]) -> Cells {
    let Section::Attention(attention) = &state.sections[0] else {
        panic!("attention stands first");
    };
    let stream = &attention.streams[0];
    let rows = stream.rows.as_ref().unwrap();
    Cells::read(bytes, rows, &stream.positions, 0..stream.positions.len()).unwrap()
}

/// The largest difference of two states' rows.
fn difference(a: &[u8], b: &[u8]) -> f32 {
    let [a, b] = [a, b].map(|bytes| cells(&read(bytes).unwrap(), bytes));
    let all = |cells: Cells| {
        cells
            .keys
            .into_iter()
            .chain(cells.values)
            .flatten()
            .collect::<Vec<_>>()
    };
    all(a)
        .iter()
        .zip(all(b))
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max)
}

#[test]
fn codebooks_are_the_same_before_and_after_they_are_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("codebook.safetensors");
    let codebook = codebook();
    codebook.write(&path).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    assert_eq!(Codebook::read(&bytes).unwrap(), codebook);
    for at in (0..bytes.len()).step_by(bytes.len() / 97) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1;
        // What it says of trials and of the text is no part of its digest.
        if let Ok(other) = Codebook::read(&damaged) {
            assert_eq!(
                (other.digest(), other.groups),
                (codebook.digest(), codebook.groups.clone())
            );
        }
    }
    for end in (0..bytes.len()).step_by(997) {
        assert!(Codebook::read(&bytes[..end]).is_err());
    }
}

#[test]
fn small_steps_lose_little_and_the_first_cell_nothing() {
    let codebook = codebook();
    let encoder = Encoder::new(&codebook).unwrap();
    for cells_of in [1, 5, 40] {
        let (_, bytes) = states::state(&Kind::plain(Form::Sequence { version: 4 }, cells_of));
        let mut last = f32::INFINITY;
        for step in [1.0, 0.01] {
            let file = packed(&bytes, Way::Transform(&encoder, step));
            let back = unpacked(&file, Some(&codebook), &Target::default()).unwrap();
            let far = difference(&bytes, &back);
            assert!(far < last || far == 0.0, "{cells_of} {step}: {far}");
            last = far;
            let [a, b] = [&bytes, &back].map(|bytes| cells(&read(bytes).unwrap(), bytes));
            assert_eq!(a.piece(0..1), b.piece(0..1));
        }
        assert!(last < 0.05, "{last}");
    }
}

#[test]
fn bytes_do_not_depend_on_the_number_of_threads() {
    let made = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        pool.build().unwrap().install(|| {
            let codebook = codebook();
            let encoder = Encoder::new(&codebook).unwrap();
            let (_, bytes) = states::state(&Kind::plain(Form::Sequence { version: 4 }, 40));
            let files = ways(&encoder).map(|way| packed(&bytes, way));
            (codebook.digest(), files)
        })
    };
    assert!(made(1) == made(3));
}

#[test]
fn steps_that_are_too_small_keep_cells_as_they_are() {
    let codebook = codebook();
    let encoder = Encoder::new(&codebook).unwrap();
    let (_, bytes) = states::state(&Kind::plain(Form::Sequence { version: 4 }, 9));
    let file = packed(&bytes, Way::Transform(&encoder, 1e-9));
    let back = unpacked(&file, Some(&codebook), &Target::default()).unwrap();
    assert!(back == bytes);
    for step in [0.0, -1.0, f32::INFINITY, f32::NAN] {
        let way = Way::Transform(&encoder, step);
        assert!(
            pack(&bytes, way, 2, None, Vec::new(), &mut |_| ()).is_err(),
            "{step}"
        );
    }
}

#[test]
fn quantized_rows_that_may_be_rotated_are_packed_bit_by_bit_only() {
    let kinds = states::kinds();
    let quantized = kinds.iter().find(|(name, _)| *name == "quantized").unwrap();
    let old = Kind {
        form: Form::Session {
            version: 10,
            architecture: "llama".into(),
        },
        turn: 0,
        ..quantized.1.clone()
    };
    let (_, bytes) = states::state(&old);
    assert!(unpacked(&packed(&bytes, Way::Lossless), None, &Target::default()).unwrap() == bytes);
    let way = Way::Quantize(TensorType::F16);
    let error = pack(&bytes, way, 2, None, Vec::new(), &mut |_| ()).unwrap_err();
    assert!(matches!(error, KvError::UnknownTurns), "{error}");
}

#[test]
fn a_ratio_is_met() {
    let codebook = codebook();
    let encoder = Encoder::new(&codebook).unwrap();
    let (_, bytes) = states::state(&Kind::plain(Form::Sequence { version: 4 }, 300));
    let step = step_for_ratio(&bytes, &encoder, 6.0, 64).unwrap();
    let way = Way::Transform(&encoder, step);
    let done = pack(&bytes, way, 64, None, std::io::sink(), &mut |_| ()).unwrap();
    assert!((5.5..6.6).contains(&done.ratio()), "{}", done.ratio());
}

#[test]
fn another_codebook_and_another_model_are_refused() {
    let own = codebook();
    let mut other = own.clone();
    other.places.exact = 2;
    let encoder = Encoder::new(&own).unwrap();
    let (_, bytes) = states::state(&states::kinds()[0].1);
    let file = packed(&bytes, Way::Transform(&encoder, 0.1));
    let none = unpacked(&file, None, &Target::default()).unwrap_err();
    assert!(matches!(none, KvError::NoCodebook), "{none}");
    let error = unpacked(&file, Some(&other), &Target::default()).unwrap_err();
    assert!(matches!(error, KvError::OtherCodebook { .. }), "{error}");
    let latent = Kind {
        has_values: false,
        ..states::kinds()[0].1.clone()
    };
    let (_, bytes) = states::state(&latent);
    let way = Way::Transform(&encoder, 0.1);
    let error = pack(&bytes, way, 2, None, Vec::new(), &mut |_| ()).unwrap_err();
    assert!(matches!(error, KvError::OtherModel { .. }), "{error}");
}

/// Every way that needs no llama.cpp.
fn ways<'a>(encoder: &'a Encoder<'a>) -> [Way<'a>; 4] {
    let ranks = Ranks {
        keys: 1.0,
        values: 1.0,
        energy: 1.0,
    };
    let quantized = Way::Quantize(TensorType::BF16);
    [
        Way::Lossless,
        Way::Transform(encoder, 0.05),
        Way::ChunkedSvd(ranks),
        quantized,
    ]
}

#[test]
fn windows_and_recurrent_layers_are_carried_bit_by_bit_by_every_way() {
    let codebook = codebook();
    let encoder = Encoder::new(&codebook).unwrap();
    for (name, kind) in states::kinds() {
        if !name.contains("window") && name != "hybrid" {
            continue;
        }
        let (state, bytes) = states::state(&kind);
        for way in ways(&encoder) {
            let file = packed(&bytes, way);
            let back = unpacked(&file, Some(&codebook), &Target::default()).unwrap();
            let rest = state.sections[1..].iter().map(|section| match section {
                Section::Recurrent { range, .. } => range.clone(),
                Section::Attention(attention) => {
                    let rows = attention.streams[0].rows.as_ref().unwrap();
                    rows.keys[0].at..rows.values[1].at + rows.values[1].row_bytes() * 3
                }
            });
            for range in rest {
                assert_eq!(bytes[range.clone()], back[range], "{name}");
            }
        }
    }
}

#[test]
fn damaged_records_with_right_checksums_do_not_panic() {
    let codebook = codebook();
    let encoder = Encoder::new(&codebook).unwrap();
    let (_, bytes) = states::state(&Kind::plain(Form::Sequence { version: 4 }, 7));
    let mut refused = 0;
    for way in ways(&encoder) {
        let file = packed(&bytes, way);
        let whole = Packed::read(&file).unwrap();
        for index in 0..300u64 {
            let mut rng = ChaCha8Rng::seed_from_u64(index);
            let (settings, description) = (whole.settings.to_vec(), &whole.description);
            let mut writer = PackedWriter::new(Vec::new(), &settings, description).unwrap();
            for record in &whole.records {
                let mut payload = whole.payload(record).unwrap().to_vec();
                for _ in 0..rng.random_range(0..3) {
                    let at = rng.random_range(0..payload.len());
                    payload[at] = rng.random();
                }
                if rng.random_range(0..4) == 0 {
                    payload.truncate(rng.random_range(0..payload.len()));
                }
                writer.record(record.place, &payload).unwrap();
            }
            let (damaged, _) = writer.finish().unwrap();
            refused +=
                usize::from(unpacked(&damaged, Some(&codebook), &Target::default()).is_err());
        }
    }
    assert!(refused > 200, "{refused}");
}

/// The seeds of the fuzz target: each way that needs no codebook, and a state of several sections.
fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let kinds = states::kinds();
    let of = |name: &str| states::state(&kinds.iter().find(|(n, _)| *n == name).unwrap().1).1;
    let ranks = Ranks {
        keys: 0.1,
        values: 0.1,
        energy: 1.0,
    };
    vec![
        ("lossless.dwkv", packed(&of("sequence"), Way::Lossless)),
        (
            "window-hybrid.dwkv",
            packed(&of("window-hybrid"), Way::Lossless),
        ),
        (
            "chunked-svd.dwkv",
            packed(&of("bytes"), Way::ChunkedSvd(ranks)),
        ),
        (
            "quantize.dwkv",
            packed(&of("session"), Way::Quantize(TensorType::BF16)),
        ),
    ]
}

fn corpus() -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/packed")
}

#[test]
fn seeds_are_what_is_written() {
    for (name, bytes) in seeds() {
        let seed = std::fs::read(corpus().join(name)).unwrap();
        let [made, kept] = [&bytes, &seed].map(|file| {
            unpacked(file, None, &Target::default()).unwrap_or_else(|e| panic!("{name}: {e}"))
        });
        assert!(made == kept, "{name}");
    }
}

#[test]
#[ignore = "writes the seeds anew"]
fn write_seeds() {
    std::fs::create_dir_all(corpus()).unwrap();
    for (name, bytes) in seeds() {
        std::fs::write(corpus().join(name), bytes).unwrap();
    }
}
