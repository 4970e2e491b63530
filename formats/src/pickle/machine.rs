//! Runs a pickle without running anything: the stack machine of Python's `pickle` module, protocols 0 to 4, whose
//! calls are data.

use std::collections::HashMap;

use super::PickleError;

/// Values that a pickle may make: some hundred thousand tensors'.
const MOST: usize = 1 << 23;

/// Bytes of the name of a module, or of what is in it.
const LONGEST: usize = 256;

/// Where a value is among those that were made.
pub(super) type Id = usize;

/// What a pickle makes.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    None,
    Bool(bool),
    Int(i64),
    /// An integer of more than eight bytes, little-endian.
    Long(Vec<u8>),
    /// A float or bytes, which weights have no use for.
    Other,
    Text(String),
    /// A tuple or a list.
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// A name in a module.
    Global(String, String),
    /// What a persistent name stands for.
    Persistent(Id),
    /// A call, its function and its arguments.
    Call(Id, Id),
}

/// A pickle that has been read.
#[derive(Debug)]
pub(super) struct Pickle {
    pub(super) values: Vec<Value>,
    /// What it stands for.
    pub(super) root: Id,
    /// Its bytes.
    pub(super) len: usize,
}

impl Pickle {
    pub(super) fn get(&self, id: Id) -> &Value {
        &self.values[id]
    }

    pub(super) fn text(&self, id: Id) -> Option<&str> {
        match self.get(id) {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn list(&self, id: Id) -> Option<&[Id]> {
        match self.get(id) {
            Value::List(items) => Some(items),
            _ => None,
        }
    }

    pub(super) fn count(&self, id: Id) -> Option<usize> {
        match self.get(id) {
            Value::Int(n) => usize::try_from(*n).ok(),
            _ => None,
        }
    }

    /// `MODULE.NAME` of a name.
    pub(super) fn global(&self, id: Id) -> Option<String> {
        match self.get(id) {
            Value::Global(module, name) => Some(format!("{module}.{name}")),
            _ => None,
        }
    }
}

/// Reads the pickle at the beginning of some bytes.
pub(super) fn read(bytes: &[u8]) -> Result<Pickle, PickleError> {
    let mut machine = Machine {
        bytes,
        at: 0,
        values: Vec::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        items: 0,
    };
    let root = machine.run()?;
    Ok(Pickle {
        root,
        len: machine.at,
        values: machine.values,
    })
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    values: Vec<Value>,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: HashMap<usize, Id>,
    /// Items that marks were set before.
    items: usize,
}

impl<'a> Machine<'a> {
    fn run(&mut self) -> Result<Id, PickleError> {
        loop {
            let counts = [
                self.values.len(),
                self.stack.len(),
                self.marks.len(),
                self.items,
            ];
            if counts.iter().any(|count| *count > MOST) {
                return Err(PickleError::Damaged { at: self.at });
            }
            let code = self.take(1)?[0];
            match code {
                b'.' => return self.pop(),
                0x80 => _ = self.take(1)?,
                0x95 => _ = self.take(8)?,
                b'(' => self.marks.push(self.stack.len()),
                b'0' => _ = self.pop()?,
                b'1' => _ = self.marked()?,
                b'2' => {
                    let top = self.top()?;
                    self.stack.push(top);
                }
                b'q' | b'r' | b'p' | 0x94 => self.remember(code)?,
                b'h' | b'j' | b'g' => self.recall(code)?,
                b'a' | b'e' | b's' | b'u' => self.fill(code)?,
                b'R' | 0x81 => {
                    let (arguments, function) = (self.pop()?, self.pop()?);
                    self.push(Value::Call(function, arguments));
                }
                // The state of an object, such as the versions of modules beside their weights.
                b'b' => _ = self.pop()?,
                b'Q' => {
                    let name = self.pop()?;
                    self.push(Value::Persistent(name));
                }
                b't' | b'l' | b'd' | b')' | b']' | b'}' | 0x85..=0x87 => self.collect(code)?,
                _ => {
                    let value = self.literal(code)?;
                    self.push(value);
                }
            }
        }
    }

    /// A value that stands for itself.
    fn literal(&mut self, code: u8) -> Result<Value, PickleError> {
        Ok(match code {
            b'N' => Value::None,
            0x88 => Value::Bool(true),
            0x89 => Value::Bool(false),
            b'K' => Value::Int(i64::from(self.take(1)?[0])),
            b'M' => Value::Int(self.number(2)? as i64),
            b'J' => Value::Int(i64::from(self.number(4)? as u32 as i32)),
            b'I' | b'L' => self.written()?,
            0x8a => {
                let len = usize::from(self.take(1)?[0]);
                let bytes = self.take(len)?;
                long(bytes)
            }
            b'G' => {
                self.take(8)?;
                Value::Other
            }
            b'X' => self.unicode(4)?,
            0x8c => self.unicode(1)?,
            0x8d => self.unicode(8)?,
            b'T' => self.unicode(4)?,
            b'U' => self.unicode(1)?,
            b'B' | b'C' => {
                let len = self.number(if code == b'B' { 4 } else { 1 })?;
                self.take(len)?;
                Value::Other
            }
            b'c' => {
                let module = self.line()?.to_string();
                Value::Global(module, self.line()?.to_string())
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                match (&self.values[module], &self.values[name]) {
                    (Value::Text(module), Value::Text(name))
                        if module.len().max(name.len()) <= LONGEST =>
                    {
                        Value::Global(module.clone(), name.clone())
                    }
                    _ => return Err(PickleError::Damaged { at: self.at }),
                }
            }
            other => {
                return Err(PickleError::Instruction {
                    code: other,
                    at: self.at - 1,
                });
            }
        })
    }

    /// Makes a tuple, a list or a dictionary.
    fn collect(&mut self, code: u8) -> Result<(), PickleError> {
        let items = match code {
            b't' | b'l' | b'd' => self.marked()?,
            0x85..=0x87 => {
                let count = usize::from(code - 0x84);
                let start = self.stack.len().checked_sub(count);
                self.stack.split_off(start.ok_or(self.damaged())?)
            }
            _ => Vec::new(),
        };
        let value = match code {
            b'd' | b'}' => Value::Dict(pairs(&items)),
            _ => Value::List(items),
        };
        self.push(value);
        Ok(())
    }

    /// Adds to a list or a dictionary.
    fn fill(&mut self, code: u8) -> Result<(), PickleError> {
        let items = match code {
            b'a' => vec![self.pop()?],
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                vec![key, value]
            }
            _ => self.marked()?,
        };
        let mut to = self.top()?;
        // An ordered dictionary is a call, of which only the items matter.
        if let Value::Call(_, arguments) = self.values[to] {
            if !matches!(self.values[arguments], Value::List(_) | Value::Dict(_)) {
                return Err(self.damaged());
            }
            if self.values[arguments] == Value::List(Vec::new()) {
                let dict = self.values.len();
                self.values.push(Value::Dict(Vec::new()));
                self.values[to] = Value::Call(self.function(to), dict);
                to = dict;
            } else {
                to = arguments;
            }
        }
        let damaged = self.damaged();
        match &mut self.values[to] {
            Value::List(list) if matches!(code, b'a' | b'e') => list.extend(items),
            Value::Dict(dict) if matches!(code, b's' | b'u') => dict.extend(pairs(&items)),
            _ => return Err(damaged),
        }
        Ok(())
    }

    fn function(&self, call: Id) -> Id {
        match self.values[call] {
            Value::Call(function, _) => function,
            _ => call,
        }
    }

    fn remember(&mut self, code: u8) -> Result<(), PickleError> {
        let place = match code {
            0x94 => self.memo.len(),
            _ => self.place(code == b'q', code == b'p')?,
        };
        let top = self.top()?;
        self.memo.insert(place, top);
        Ok(())
    }

    fn recall(&mut self, code: u8) -> Result<(), PickleError> {
        let place = self.place(code == b'h', code == b'g')?;
        let found = self.memo.get(&place).copied();
        let id = found.ok_or_else(|| self.damaged())?;
        self.stack.push(id);
        Ok(())
    }

    fn place(&mut self, short: bool, written: bool) -> Result<usize, PickleError> {
        if written {
            let damaged = self.damaged();
            return self.line()?.parse().map_err(|_| damaged);
        }
        self.number(if short { 1 } else { 4 })
    }

    /// An integer in decimal digits; protocol 0 writes truth values so too.
    fn written(&mut self) -> Result<Value, PickleError> {
        let damaged = self.damaged();
        match self.line()? {
            "00" => Ok(Value::Bool(false)),
            "01" => Ok(Value::Bool(true)),
            digits => match digits.trim_end_matches('L').parse() {
                Ok(n) => Ok(Value::Int(n)),
                Err(_) => Err(damaged),
            },
        }
    }

    fn unicode(&mut self, bytes: usize) -> Result<Value, PickleError> {
        let len = self.number(bytes)?;
        let text = self.take(len)?;
        Ok(Value::Text(String::from_utf8_lossy(text).into_owned()))
    }

    fn number(&mut self, bytes: usize) -> Result<usize, PickleError> {
        let mut all = [0; 8];
        all[..bytes].copy_from_slice(self.take(bytes)?);
        usize::try_from(u64::from_le_bytes(all)).map_err(|_| self.damaged())
    }

    fn line(&mut self) -> Result<&'a str, PickleError> {
        let rest = &self.bytes[self.at..];
        let end = rest.iter().position(|b| *b == b'\n');
        let end = end.ok_or_else(|| self.damaged())?;
        let line = std::str::from_utf8(&rest[..end]).map_err(|_| self.damaged())?;
        self.at += end + 1;
        Ok(line)
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], PickleError> {
        let end = self.at.checked_add(len);
        let found = end.and_then(|end| self.bytes.get(self.at..end));
        let found = found.ok_or_else(|| self.damaged())?;
        self.at += len;
        Ok(found)
    }

    fn push(&mut self, value: Value) {
        self.stack.push(self.values.len());
        self.values.push(value);
    }

    fn pop(&mut self) -> Result<Id, PickleError> {
        self.stack.pop().ok_or_else(|| self.damaged())
    }

    fn top(&self) -> Result<Id, PickleError> {
        self.stack.last().copied().ok_or_else(|| self.damaged())
    }

    /// What lies on the stack above the last mark.
    fn marked(&mut self) -> Result<Vec<Id>, PickleError> {
        let mark = self.marks.pop().filter(|mark| *mark <= self.stack.len());
        let mark = mark.ok_or_else(|| self.damaged())?;
        let items = self.stack.split_off(mark);
        self.items += items.len();
        Ok(items)
    }

    fn damaged(&self) -> PickleError {
        PickleError::Damaged { at: self.at }
    }
}

fn pairs(items: &[Id]) -> Vec<(Id, Id)> {
    items
        .as_chunks::<2>()
        .0
        .iter()
        .map(|p| (p[0], p[1]))
        .collect()
}

fn long(bytes: &[u8]) -> Value {
    let negative = bytes.last().is_some_and(|last| last & 128 != 0);
    if bytes.len() > 8 {
        return Value::Long(bytes.to_vec());
    }
    let mut all = [if negative { 255 } else { 0 }; 8];
    all[..bytes.len()].copy_from_slice(bytes);
    Value::Int(i64::from_le_bytes(all))
}
