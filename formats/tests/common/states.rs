//! States as llama.cpp writes them, small and of every kind.

use dwindle_formats::gguf::TensorType;
use dwindle_formats::state::{Attention, Form, Part, Rows, Section, State, Stream};

/// What varies among states.
#[derive(Debug, Clone)]
pub struct Kind {
    pub form: Form,
    pub ty: TensorType,
    pub value_ty: TensorType,
    pub is_transposed: bool,
    pub has_coordinates: bool,
    pub has_values: bool,
    /// Cells of each stream of each section of attention.
    pub cells: Vec<Vec<usize>>,
    pub recurrent: usize,
    pub turn: u32,
}

impl Kind {
    /// Plain attention in F16.
    pub fn plain(form: Form, cells: usize) -> Kind {
        Kind {
            form,
            ty: TensorType::F16,
            value_ty: TensorType::F16,
            is_transposed: false,
            has_coordinates: false,
            has_values: true,
            cells: vec![vec![cells]],
            recurrent: 0,
            turn: 0,
        }
    }
}

/// One of each kind, by name.
pub fn kinds() -> Vec<(&'static str, Kind)> {
    let sequence = |version| Form::Sequence { version };
    let session = |version| Form::Session {
        version,
        architecture: "llama".into(),
    };
    let of = |change: fn(&mut Kind)| {
        let mut kind = Kind::plain(sequence(4), 5);
        change(&mut kind);
        kind
    };
    vec![
        ("sequence", Kind::plain(sequence(4), 5)),
        ("old-sequence", Kind::plain(sequence(3), 5)),
        ("session", Kind::plain(session(11), 5)),
        ("old-session", Kind::plain(session(10), 5)),
        ("bytes", Kind::plain(Form::Bytes { sequence: 0 }, 5)),
        ("empty", Kind::plain(sequence(4), 0)),
        ("by-element", of(|kind| kind.is_transposed = true)),
        (
            "quantized",
            of(|kind| {
                (kind.ty, kind.value_ty, kind.turn) = (TensorType::Q4_0, TensorType::Q4_0, 64)
            }),
        ),
        (
            "mixed",
            of(|kind| (kind.ty, kind.is_transposed) = (TensorType::Q8_0, true)),
        ),
        ("streams", of(|kind| kind.cells = vec![vec![0, 0, 4, 0]])),
        ("coordinates", of(|kind| kind.has_coordinates = true)),
        ("latent", of(|kind| kind.has_values = false)),
        ("window", of(|kind| kind.cells = vec![vec![5], vec![3]])),
        ("hybrid", of(|kind| kind.recurrent = 2)),
        (
            "window-hybrid",
            of(|kind| (kind.cells, kind.recurrent) = (vec![vec![5], vec![3]], 1)),
        ),
        (
            "recurrent",
            of(|kind| (kind.cells, kind.recurrent) = (Vec::new(), 1)),
        ),
    ]
}

const LAYERS: usize = 2;
pub const WIDTHS: [u32; 2] = [64, 128];

/// A state of a kind, and its bytes.
pub fn state(kind: &Kind) -> (State, Vec<u8>) {
    let mut sections: Vec<Section> = kind
        .cells
        .iter()
        .map(|cells| attention(kind, cells))
        .collect();
    let tail = recurrent(kind.recurrent);
    if kind.recurrent > 0 {
        sections.push(Section::Recurrent {
            range: 0..tail.len(),
            positions: (0..kind.recurrent as i32).collect(),
        });
    }
    let tokens = match kind.form {
        Form::Bytes { .. } => Vec::new(),
        _ => vec![1, 7, 9],
    };
    let mut state = State {
        form: kind.form.clone(),
        tokens,
        sections,
    };
    let frame = state.lay_out();
    // Rows that no two cells share, and that are finite in every type.
    let mut bytes: Vec<u8> = (0..frame.len)
        .map(|i| (i * 7 + i / 251) as u8 & 0x3b)
        .collect();
    for (at, piece) in &frame.pieces {
        bytes[*at..at + piece.len()].copy_from_slice(piece);
    }
    if let Some(Section::Recurrent { range, .. }) = state.sections.last() {
        bytes[range.clone()].copy_from_slice(&tail);
    }
    (state, bytes)
}

fn attention(kind: &Kind, cells: &[usize]) -> Section {
    let part = |ty: TensorType, i: usize| Part {
        ty,
        width: WIDTHS[i % 2],
        at: 0,
    };
    let stream = |count: &usize| {
        let mut raw = Vec::new();
        for position in 0..*count as i32 {
            raw.extend(position.to_le_bytes());
            raw.extend(1u32.to_le_bytes());
            if kind.has_coordinates {
                raw.extend([0; 12]);
            }
            raw.extend(0i32.to_le_bytes());
        }
        Stream {
            positions: (0..*count as i32).collect(),
            cells: raw,
            rows: (*count > 0).then(|| Rows {
                is_transposed: kind.is_transposed,
                key_turn: kind.turn,
                value_turn: kind.turn,
                keys: (0..LAYERS).map(|i| part(kind.ty, i)).collect(),
                values: (0..if kind.has_values { LAYERS } else { 0 })
                    .map(|i| part(kind.value_ty, i))
                    .collect(),
            }),
        }
    };
    Section::Attention(Attention {
        has_coordinates: kind.has_coordinates,
        streams: cells.iter().map(stream).collect(),
    })
}

/// What a recurrent memory of some cells is, in F32.
fn recurrent(cells: usize) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend((cells as u32).to_le_bytes());
    for position in 0..cells as i32 {
        out.extend(position.to_le_bytes());
        out.extend(0u32.to_le_bytes());
    }
    out.extend(0u32.to_le_bytes());
    out.extend(2u32.to_le_bytes());
    for width in [3u64, 8, 0] {
        out.extend(0u32.to_le_bytes());
        out.extend((width * 4).to_le_bytes());
        out.extend(vec![0x3f; width as usize * 4 * cells]);
    }
    out
}
