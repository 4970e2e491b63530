//! The form that a state is unpacked into.

use dwindle_formats::gguf::TensorType;
use dwindle_formats::state::{Form, Part, Rows, Section, State, Stream};

use crate::error::KvError;
use crate::parts::turns_of;
use crate::rotated;
use crate::settings::Settings;

/// What a state is unpacked into; what is `None` stays as it was.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Target {
    /// The type of keys and values.
    pub ty: Option<TensorType>,
    /// Whether values are stored by element.
    pub is_transposed: Option<bool>,
    /// Which Hadamard matrices keys and values stand behind.
    pub turns: Turns,
    /// How many streams there are.
    pub streams: Option<usize>,
    /// 3 or 4 of a sequence; a session then has 10 or 11.
    pub version: Option<u32>,
}

/// Hadamard matrices before keys and values are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Turns {
    /// Those that llama.cpp of versions 4 and 11 has for the type and the heads; where the type stays, as it was.
    #[default]
    Fitting,
    /// Those that llama.cpp of versions 4 and 11 has for the type and the heads, whatever was there.
    On,
    /// None.
    Off,
    /// Of these sizes for keys and values; 0 for none.
    Of([u32; 2]),
}

impl Target {
    /// The state that is wanted.
    ///
    /// # Errors
    /// It can't be of that form.
    pub(crate) fn aim(&self, source: &State, settings: &Settings) -> Result<State, KvError> {
        let is_changed =
            self.ty.is_some() || self.version == Some(4) || self.turns != Turns::Fitting;
        let is_unknown = rotated::is_unknown(source) && settings.rotated.is_none();
        if (is_unknown || rotated::are_windows_unknown(source)) && is_changed {
            return Err(KvError::UnknownTurns);
        }
        let mut state = source.clone();
        match (&mut state.form, self.version) {
            (_, None) | (Form::Bytes { .. }, _) => {}
            (Form::Sequence { version }, Some(wanted)) => *version = wanted,
            (Form::Session { version, .. }, Some(wanted)) => *version = wanted + 7,
        }
        let says_turns = state.form.says_turns();
        for section in &mut state.sections {
            let Section::Attention(attention) = section else {
                continue;
            };
            if let Some(count) = self.streams {
                attention.streams = arranged(&attention.streams, count)?;
            }
            for rows in attention.streams.iter_mut().filter_map(|s| s.rows.as_mut()) {
                self.shape(rows, settings, says_turns)?;
            }
        }
        Ok(state)
    }

    fn shape(&self, rows: &mut Rows, settings: &Settings, says_turns: bool) -> Result<(), KvError> {
        let is_turned = settings.rotated.is_some_and(|turns| turns != [0, 0]);
        let is_known = says_turns || is_turned;
        if let Some(ty) = self.ty {
            for part in rows.keys.iter_mut().chain(&mut rows.values) {
                part.ty = ty;
                if part.row_bytes() == 0 {
                    return Err(KvError::Shape(
                        "a type whose blocks are longer than its rows",
                    ));
                }
            }
        }
        rows.is_transposed = self.is_transposed.unwrap_or(rows.is_transposed);
        if rows.is_transposed && rows.values.iter().any(|p| p.ty.is_quantized()) {
            return Err(KvError::Shape("quantized values by element"));
        }
        let turns = match self.turns {
            Turns::Off => [0, 0],
            Turns::Of(turns) => turns,
            // What was turned stays so, as long as its type does.
            Turns::Fitting if self.ty.is_none() && is_known => [rows.key_turn, rows.value_turn],
            Turns::Fitting if !says_turns && !is_turned => [0, 0],
            Turns::Fitting | Turns::On => fitting(rows, settings.heads)?,
        };
        let divide = |parts: &[Part], turn: u32| {
            turn == 0
                || parts
                    .iter()
                    .all(|p| turn.is_power_of_two() && p.width.is_multiple_of(turn))
        };
        if !divide(&rows.keys, turns[0]) || !divide(&rows.values, turns[1]) {
            return Err(KvError::Shape("rotations that its heads do not allow"));
        }
        if turns != [0, 0] && !is_known && self.turns != Turns::On {
            return Err(KvError::Shape("rotated rows in a version that knows none"));
        }
        [rows.key_turn, rows.value_turn] = turns;
        Ok(())
    }
}

/// The Hadamard matrices that llama.cpp has for these types.
fn fitting(rows: &Rows, heads: Option<[usize; 2]>) -> Result<[u32; 2], KvError> {
    let of = |parts: &[Part], kind: usize| match (parts.first(), heads) {
        (Some(part), Some(heads)) => Ok(turns_of(part.ty, heads)[kind]),
        (Some(part), None) if part.ty.is_quantized() => Err(KvError::Shape(
            "a quantized type as long as the size of a head is not known; pack it with a codebook, or turn rotation \
             off",
        )),
        _ => Ok(0),
    };
    Ok([of(&rows.keys, 0)?, of(&rows.values, 1)?])
}

/// The same cells in so many streams.
fn arranged(streams: &[Stream], count: usize) -> Result<Vec<Stream>, KvError> {
    let used = || streams.iter().filter(|s| !s.positions.is_empty());
    let mut out = match streams.len() == count || used().count() > 1 {
        true => streams.to_vec(),
        false => used().cloned().collect(),
    };
    if out.len() > count {
        return Err(KvError::Shape("fewer streams than have cells"));
    }
    out.resize(count, Stream::default());
    Ok(out)
}
