//! Metadata values and the ordered map that holds them.

use std::collections::HashMap;

/// A metadata value, one variant for each GGUF value type.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)] // the variants are the GGUF value types
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(String),
    Array(Array),
    U64(u64),
    I64(i64),
    F64(f64),
}

/// A metadata array. Arrays of arrays are legal GGUF but no writer makes them; they are refused.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)] // the variants are the GGUF value types
pub enum Array {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    F32(Vec<f32>),
    Bool(Vec<bool>),
    String(Vec<String>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F64(Vec<f64>),
}

impl Array {
    /// The largest element of an array of integers; `None` for other types, negative elements and
    /// empty arrays.
    pub fn max_u64(&self) -> Option<u64> {
        fn max<T: Copy + TryInto<u64>>(v: &[T]) -> Option<u64> {
            v.iter().map(|n| (*n).try_into().ok()).max().flatten()
        }
        match self {
            Array::U8(v) => max(v),
            Array::I8(v) => max(v),
            Array::U16(v) => max(v),
            Array::I16(v) => max(v),
            Array::U32(v) => max(v),
            Array::I32(v) => max(v),
            Array::U64(v) => max(v),
            Array::I64(v) => max(v),
            _ => None,
        }
    }

    /// One element of an array of integers; `None` for other types, negative elements and places
    /// that there are not.
    pub fn get_u64(&self, index: usize) -> Option<u64> {
        fn get<T: Copy + TryInto<u64>>(v: &[T], index: usize) -> Option<u64> {
            (*v.get(index)?).try_into().ok()
        }
        match self {
            Array::U8(v) => get(v, index),
            Array::I8(v) => get(v, index),
            Array::U16(v) => get(v, index),
            Array::I16(v) => get(v, index),
            Array::U32(v) => get(v, index),
            Array::I32(v) => get(v, index),
            Array::U64(v) => get(v, index),
            Array::I64(v) => get(v, index),
            _ => None,
        }
    }

    /// The number of elements and the first `most` of them.
    fn shown(&self, most: usize) -> String {
        fn few<T: ToString>(v: &[T], most: usize) -> String {
            let shown: Vec<String> = v.iter().take(most).map(T::to_string).collect();
            format!("{} values: {}", v.len(), shown.join(", "))
        }
        match self {
            Array::U8(v) => few(v, most),
            Array::I8(v) => few(v, most),
            Array::U16(v) => few(v, most),
            Array::I16(v) => few(v, most),
            Array::U32(v) => few(v, most),
            Array::I32(v) => few(v, most),
            Array::F32(v) => few(v, most),
            Array::Bool(v) => few(v, most),
            Array::String(v) => few(v, most),
            Array::U64(v) => few(v, most),
            Array::I64(v) => few(v, most),
            Array::F64(v) => few(v, most),
        }
    }
}

/// The GGUF ids of the value types (`enum gguf_type`).
#[allow(missing_docs)]
pub mod type_id {
    pub const U8: u32 = 0;
    pub const I8: u32 = 1;
    pub const U16: u32 = 2;
    pub const I16: u32 = 3;
    pub const U32: u32 = 4;
    pub const I32: u32 = 5;
    pub const F32: u32 = 6;
    pub const BOOL: u32 = 7;
    pub const STRING: u32 = 8;
    pub const ARRAY: u32 = 9;
    pub const U64: u32 = 10;
    pub const I64: u32 = 11;
    pub const F64: u32 = 12;
}

macro_rules! froms {
    ($($ty:ty => $variant:ident),* $(,)?) => {$(
        impl From<$ty> for Value {
            fn from(v: $ty) -> Value { Value::$variant(v) }
        }
        impl From<Vec<$ty>> for Value {
            fn from(v: Vec<$ty>) -> Value { Value::Array(Array::$variant(v)) }
        }
    )*};
}
froms!(u8 => U8, i8 => I8, u16 => U16, i16 => I16, u32 => U32, i32 => I32, f32 => F32,
       bool => Bool, String => String, u64 => U64, i64 => I64, f64 => F64);

impl From<&str> for Value {
    fn from(v: &str) -> Value {
        Value::String(v.to_string())
    }
}

impl Value {
    /// The value as a count, whatever integer type the writer chose; `None` for other types and
    /// for negative numbers.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Value::U8(v) => Some(v.into()),
            Value::U16(v) => Some(v.into()),
            Value::U32(v) => Some(v.into()),
            Value::U64(v) => Some(v),
            Value::I8(v) => v.try_into().ok(),
            Value::I16(v) => v.try_into().ok(),
            Value::I32(v) => v.try_into().ok(),
            Value::I64(v) => v.try_into().ok(),
            _ => None,
        }
    }

    /// The value as text.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::String(s) => Some(s),
            _ => None,
        }
    }

    /// The value as a number.
    pub fn as_f64(&self) -> Option<f64> {
        match *self {
            Value::F32(v) => Some(v.into()),
            Value::F64(v) => Some(v),
            _ => self.as_u64().map(|v| v as f64),
        }
    }

    /// The value for a reader: without its type, special letters escaped, and the first `most` elements of an
    /// array.
    pub fn shown(&self, most: usize) -> String {
        match self {
            Value::U8(v) => v.to_string(),
            Value::I8(v) => v.to_string(),
            Value::U16(v) => v.to_string(),
            Value::I16(v) => v.to_string(),
            Value::U32(v) => v.to_string(),
            Value::I32(v) => v.to_string(),
            Value::F32(v) => v.to_string(),
            Value::Bool(v) => v.to_string(),
            Value::String(v) => v.escape_debug().to_string(),
            Value::Array(v) => v.shown(most).escape_debug().to_string(),
            Value::U64(v) => v.to_string(),
            Value::I64(v) => v.to_string(),
            Value::F64(v) => v.to_string(),
        }
    }

    /// The value as a truth value.
    pub fn as_bool(&self) -> Option<bool> {
        match *self {
            Value::Bool(v) => Some(v),
            _ => None,
        }
    }
}

/// Metadata: keys in file order, each at most once.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Metadata {
    entries: Vec<(String, Value)>,
    /// Where each key stands in `entries`.
    by_key: HashMap<String, usize>,
}

impl Metadata {
    /// No entries.
    pub fn new() -> Metadata {
        Metadata::default()
    }

    /// Entries whose keys are known to differ.
    pub(super) fn from_unique(entries: Vec<(String, Value)>) -> Metadata {
        let keys = entries.iter().enumerate();
        Metadata {
            by_key: keys.map(|(i, (key, _))| (key.clone(), i)).collect(),
            entries,
        }
    }

    /// Sets a key, in place if it is there and at the end if it is not.
    pub fn set(&mut self, key: impl Into<String>, value: impl Into<Value>) {
        let (key, value) = (key.into(), value.into());
        match self.by_key.get(&key) {
            Some(at) => self.entries[*at].1 = value,
            None => {
                self.by_key.insert(key.clone(), self.entries.len());
                self.entries.push((key, value));
            }
        }
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.by_key.get(key).map(|at| &self.entries[*at].1)
    }

    /// Takes a key out.
    pub fn remove(&mut self, key: &str) -> Option<Value> {
        let at = *self.by_key.get(key)?;
        let (_, value) = self.entries.remove(at);
        *self = Metadata::from_unique(std::mem::take(&mut self.entries));
        Some(value)
    }

    /// All entries in file order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.entries.iter().map(|(k, v)| (k.as_str(), v))
    }

    /// The number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Drops every key for which `keep` says no.
    pub fn retain(&mut self, mut keep: impl FnMut(&str) -> bool) {
        self.entries.retain(|(k, _)| keep(k));
        *self = Metadata::from_unique(std::mem::take(&mut self.entries));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_shown_without_their_types() {
        let shown = |value: Value| value.shown(2);
        assert_eq!(shown(7u8.into()), "7");
        assert_eq!(shown(0.5f32.into()), "0.5");
        assert_eq!(shown("a\nb".into()), "a\\nb");
        assert_eq!(shown(vec![1i32, -2, 3].into()), "3 values: 1, -2");
        let words = ["a\n", "b"].map(String::from).to_vec();
        assert_eq!(shown(words.into()), "2 values: a\\n, b");
    }
}
