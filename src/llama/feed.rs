//! A GGUF file that exists only while it is read.
//!
//! llama.cpp loads a model from a `FILE *`. Here this is a stream whose bytes are made on demand:
//! the header is in memory, and each tensor is produced when llama.cpp reads it. So a container's
//! factors are multiplied out, digests are checked and a checkpoint is converted straight into
//! llama.cpp's buffers, with one tensor in memory at a time and nothing on disk.

use std::ffi::{c_char, c_int, c_void};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};

use dwindle_formats::gguf::{Metadata, TensorLayout, encode_header, lay_out};

use super::admission::{Described, Refusal, admit};
use super::error::LlamaError;
pub use super::error::{BoxError, FeedError};
use super::placement::Sizes;

/// Tensors begin at multiples of this, which is also the size of the stream's buffer: so a seek to
/// a tensor never makes the C library read what is before it, which would be another tensor.
const ALIGNMENT: u64 = 1 << 16;

/// Writes the data of the tensor with this index into the (empty) buffer.
pub type Produce<'a> = Box<dyn FnMut(usize, &mut Vec<u8>) -> Result<(), BoxError> + Send + 'a>;

/// A model to be loaded from memory and a function instead of from a file.
///
/// The function is called for each tensor as llama.cpp reads it, in the order of llama.cpp's
/// choosing. A tensor may be asked for twice (tied embeddings on a GPU), or not at all.
pub struct TensorFeed<'a> {
    header: Vec<u8>,
    /// Where each tensor's data is in the file, ascending.
    ranges: Vec<Range<u64>>,
    names: Vec<String>,
    len: u64,
    produce: Produce<'a>,
    /// Why llama.cpp would fail with it.
    refusal: Option<Refusal>,
}

impl std::fmt::Debug for TensorFeed<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TensorFeed")
            .field("tensors", &self.ranges.len())
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

impl<'a> TensorFeed<'a> {
    /// A file with this metadata and these tensors; `produce` is asked for them by their index.
    ///
    /// # Errors
    /// A tensor's row does not divide into blocks, or the sizes overflow.
    pub fn new(
        metadata: &Metadata,
        tensors: Vec<TensorLayout>,
        produce: Produce<'a>,
    ) -> Result<TensorFeed<'a>, FeedError> {
        let described = tensors.iter().map(|t| Described {
            name: &t.name,
            shape: &t.shape,
            ty: t.ty,
        });
        let refusal = admit(metadata, described).err();
        let (tensors, data_len) = lay_out(tensors, ALIGNMENT).ok_or(FeedError::Layout)?;
        let mut metadata = metadata.clone();
        metadata.set("general.alignment", ALIGNMENT as u32);
        let header = encode_header(&metadata, &tensors, ALIGNMENT);
        let start = header.len() as u64;
        let len = start.checked_add(data_len).ok_or(FeedError::Layout)?;
        let ranges = tensors.iter().map(|t| {
            let begin = start + t.offset;
            begin..begin + t.bytes()
        });
        Ok(TensorFeed {
            ranges: ranges.collect(),
            header,
            names: tensors.into_iter().map(|t| t.name).collect(),
            len,
            produce,
            refusal,
        })
    }

    /// Whether llama.cpp may see it.
    pub(super) fn admitted(self, name: &str) -> Result<TensorFeed<'a>, LlamaError> {
        match self.refusal {
            None => Ok(self),
            Some(source) => Err(LlamaError::Refused {
                name: name.to_string(),
                source,
            }),
        }
    }

    /// The tensors' names, in file order.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(String::as_str)
    }

    /// Bytes of the tensors with such names, without padding.
    pub(super) fn bytes_of(&self, wanted: impl Fn(&str) -> bool) -> u64 {
        let tensors = self.names.iter().zip(&self.ranges);
        let wanted = tensors.filter(|(name, _)| wanted(name));
        wanted.map(|(_, range)| range.end - range.start).sum()
    }

    /// What the model's blocks take, where some tensors take other bytes than they are read with.
    pub(super) fn sizes(&self, instead: impl Fn(&str) -> Option<u64>) -> Sizes {
        let bytes = self.ranges.iter().map(|range| range.end - range.start);
        let tensors = self.names().zip(bytes);
        Sizes::of(tensors.map(|(name, bytes)| (name, instead(name).unwrap_or(bytes))))
    }

    /// The length of the file, if it were written.
    pub fn file_len(&self) -> u64 {
        self.len
    }
}

/// What the stream's callbacks work on.
struct Reader<'a> {
    feed: TensorFeed<'a>,
    at: u64,
    current: Option<usize>,
    data: Vec<u8>,
    error: Option<FeedError>,
}

impl Reader<'_> {
    /// Fills `out` from the current position. The number of bytes is less at the end of the file
    /// and where another tensor begins: it may not be wanted, and is not made ahead of need.
    fn read(&mut self, out: &mut [u8]) -> Result<usize, FeedError> {
        let mut done = 0;
        while done < out.len() && self.at < self.feed.len {
            if done > 0 && self.begins_tensor() {
                break;
            }
            let n = self.read_some(&mut out[done..])?;
            done += n;
            self.at += n as u64;
        }
        Ok(done)
    }

    fn begins_tensor(&self) -> bool {
        let found = self.feed.ranges.binary_search_by_key(&self.at, |r| r.start);
        found.is_ok()
    }

    /// Fills some of `out`, at least one byte, from the place of the position.
    fn read_some(&mut self, out: &mut [u8]) -> Result<usize, FeedError> {
        let copy = |from: &[u8], out: &mut [u8]| {
            let n = from.len().min(out.len());
            out[..n].copy_from_slice(&from[..n]);
            n
        };
        if self.at < self.feed.header.len() as u64 {
            return Ok(copy(&self.feed.header[self.at as usize..], out));
        }
        let next = self.feed.ranges.partition_point(|r| r.end <= self.at);
        let (start, end) = match self.feed.ranges.get(next) {
            Some(range) if range.start <= self.at => {
                self.produce(next)?;
                let start = (self.at - self.feed.ranges[next].start) as usize;
                return Ok(copy(&self.data[start..], out));
            }
            Some(range) => (self.at, range.start),
            None => (self.at, self.feed.len),
        };
        let n = (end - start).min(out.len() as u64) as usize;
        out[..n].fill(0);
        Ok(n)
    }

    fn produce(&mut self, index: usize) -> Result<(), FeedError> {
        if self.current == Some(index) {
            return Ok(());
        }
        self.current = None;
        self.data.clear();
        let tensor = || self.feed.names[index].clone();
        (self.feed.produce)(index, &mut self.data).map_err(|source| FeedError::Produce {
            tensor: tensor(),
            source,
        })?;
        let range = &self.feed.ranges[index];
        let expected = range.end - range.start;
        if self.data.len() as u64 != expected {
            return Err(FeedError::Length {
                tensor: tensor(),
                found: self.data.len(),
                expected,
            });
        }
        self.current = Some(index);
        Ok(())
    }

    fn seek(&mut self, offset: i64, whence: c_int) -> Option<u64> {
        let base = match whence {
            SEEK_SET => 0,
            SEEK_CUR => self.at,
            SEEK_END => self.feed.len,
            _ => return None,
        };
        self.at = base.checked_add_signed(offset)?;
        Some(self.at)
    }

    /// Runs a callback's work: nothing may unwind into C, and the first error is kept.
    fn guarded<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T, FeedError>) -> Option<T> {
        if self.error.is_some() {
            return None;
        }
        let result = catch_unwind(AssertUnwindSafe(|| work(self)));
        let error = match result {
            Ok(Ok(value)) => return Some(value),
            Ok(Err(error)) => error,
            Err(panic) => FeedError::Panic(panic_text(&*panic)),
        };
        self.error = Some(error);
        None
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "panic".to_string())
}

const SEEK_SET: c_int = 0;
const SEEK_CUR: c_int = 1;
const SEEK_END: c_int = 2;

/// Opens the feed as a stream, hands it to `load`, closes it, and returns what `load` returned
/// together with the error that ended reading, if one did.
///
/// # Errors
/// The system has no memory for a stream, or no custom streams at all.
pub(super) fn with_stream<T>(
    feed: TensorFeed<'_>,
    load: impl FnOnce(*mut c_void) -> T,
) -> Result<(T, Option<FeedError>), FeedError> {
    let mut reader = Box::new(Reader {
        feed,
        at: 0,
        current: None,
        data: Vec::new(),
        error: None,
    });
    let cookie: *mut Reader<'_> = &mut *reader;
    let file = stream::open(cookie.cast()).map_err(FeedError::Stream)?;
    let result = load(file);
    stream::close(file);
    Ok((result, reader.error.take()))
}

#[cfg(target_os = "linux")]
mod stream {
    use super::*;

    /// `cookie_io_functions_t` of <stdio.h>.
    #[repr(C)]
    struct CookieFunctions {
        read: Option<unsafe extern "C" fn(*mut c_void, *mut c_char, usize) -> isize>,
        write: Option<unsafe extern "C" fn(*mut c_void, *const c_char, usize) -> isize>,
        seek: Option<unsafe extern "C" fn(*mut c_void, *mut i64, c_int) -> c_int>,
        close: Option<unsafe extern "C" fn(*mut c_void) -> c_int>,
    }

    unsafe extern "C" {
        fn fopencookie(
            cookie: *mut c_void,
            mode: *const c_char,
            functions: CookieFunctions,
        ) -> *mut c_void;
    }

    pub(super) fn open(reader: *mut c_void) -> std::io::Result<*mut c_void> {
        let functions = CookieFunctions {
            read: Some(read),
            write: None,
            seek: Some(seek),
            close: None,
        };
        // SAFETY: the mode is a C string, the functions fit the declared types, and the reader
        // outlives the stream, as `with_stream` closes it before it drops the reader.
        let file = unsafe { fopencookie(reader, c"rb".as_ptr(), functions) };
        if file.is_null() {
            return Err(std::io::Error::last_os_error());
        }
        // Without a buffer glibc reads custom streams byte by byte.
        // SAFETY: the stream was just opened and nothing was read from it; the C library
        // allocates the buffer. Should it refuse, its own smaller buffer serves as well.
        unsafe {
            libc::setvbuf(
                file.cast(),
                std::ptr::null_mut(),
                libc::_IOFBF,
                ALIGNMENT as usize,
            );
        }
        Ok(file)
    }

    pub(super) fn close(file: *mut c_void) {
        // SAFETY: the stream came from `open` and is closed once. Nothing was written, so that
        // closing can't lose anything.
        unsafe { libc::fclose(file.cast()) };
    }

    unsafe extern "C" fn read(reader: *mut c_void, out: *mut c_char, len: usize) -> isize {
        let _called = crate::llama::guard::CalledBack::begin();
        if len == 0 {
            return 0;
        }
        // SAFETY: the cookie is the `Reader` of `with_stream`, which lives and is used by nothing
        // else while the stream is open; a stream's callbacks run one at a time. The lifetime of
        // its borrow ends after the stream is closed.
        let reader = unsafe { &mut *reader.cast::<Reader<'_>>() };
        // SAFETY: stdio passes a buffer of `len` writable bytes; zeroed first, as Rust may only
        // see initialised memory.
        let out = unsafe {
            std::ptr::write_bytes(out, 0, len);
            std::slice::from_raw_parts_mut(out.cast::<u8>(), len)
        };
        let done = reader.guarded(|r| r.read(out));
        done.map_or(-1, |n| n as isize)
    }

    unsafe extern "C" fn seek(reader: *mut c_void, offset: *mut i64, whence: c_int) -> c_int {
        // SAFETY: as in `read`; `offset` points to one number that is both argument and result.
        let (reader, offset) = unsafe { (&mut *reader.cast::<Reader<'_>>(), &mut *offset) };
        let sought = reader.guarded(|r| Ok(r.seek(*offset, whence)));
        match sought.flatten().and_then(|at| i64::try_from(at).ok()) {
            Some(at) => {
                *offset = at;
                0
            }
            None => -1,
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod stream {
    use super::*;

    pub(super) fn open(_: *mut c_void) -> std::io::Result<*mut c_void> {
        Err(std::io::Error::new(
            std::io::ErrorKind::Unsupported,
            "this system has no custom streams; export the model to a `.gguf` file first",
        ))
    }

    pub(super) fn close(_: *mut c_void) {}
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use dwindle_formats::gguf::{TensorType, read_header};
    use std::io;

    const LENS: [u64; 3] = [3, 100_000, 5];

    fn layout() -> (Metadata, Vec<TensorLayout>) {
        let mut metadata = Metadata::new();
        metadata.set("general.architecture", "llama");
        let tensors = ["a", "b", "c"]
            .into_iter()
            .zip(LENS)
            .map(|(name, n)| TensorLayout {
                name: name.into(),
                shape: vec![n],
                ty: TensorType::I8,
            })
            .collect();
        (metadata, tensors)
    }

    fn read_all(file: *mut c_void, piece: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut buffer = vec![0u8; piece];
        loop {
            // SAFETY: the buffer has `piece` bytes and the stream is open.
            let n = unsafe { libc::fread(buffer.as_mut_ptr().cast(), 1, piece, file.cast()) };
            bytes.extend_from_slice(&buffer[..n]);
            if n < piece {
                return bytes;
            }
        }
    }

    #[test]
    fn reads_like_the_file_it_stands_for() {
        for piece in [1 << 20, 4096, 7] {
            let (metadata, tensors) = layout();
            let mut calls = Vec::new();
            let produce: Produce<'_> = Box::new(|i, out| {
                calls.push(i);
                out.resize(LENS[i] as usize, i as u8 + 1);
                Ok(())
            });
            let feed = TensorFeed::new(&metadata, tensors, produce).unwrap();
            let len = feed.file_len();
            let (bytes, error) = with_stream(feed, |file| read_all(file, piece)).unwrap();
            assert!(error.is_none());
            assert_eq!(bytes.len() as u64, len);
            let header = read_header(&bytes).unwrap();
            for (i, t) in header.tensors.iter().enumerate() {
                assert!(
                    bytes[header.data_range(t)]
                        .iter()
                        .all(|b| *b == i as u8 + 1)
                );
            }
            assert_eq!(calls, [0, 1, 2], "each tensor is produced once");
        }
    }

    #[test]
    fn jumping_to_a_tensor_makes_no_other() {
        let (metadata, tensors) = layout();
        let mut calls = Vec::new();
        let produce: Produce<'_> = Box::new(|i, out| {
            calls.push(i);
            out.resize(LENS[i] as usize, i as u8 + 1);
            Ok(())
        });
        let feed = TensorFeed::new(&metadata, tensors, produce).unwrap();
        let starts: Vec<u64> = feed.ranges.iter().map(|r| r.start).collect();
        let (_, error) = with_stream(feed, |file| {
            for i in [2, 0, 1] {
                let mut data = vec![0u8; LENS[i] as usize];
                // SAFETY: the stream is open and the buffer has as many bytes as are read.
                let read = unsafe {
                    libc::fseeko(file.cast(), starts[i] as i64, SEEK_SET);
                    libc::fread(data.as_mut_ptr().cast(), data.len(), 1, file.cast())
                };
                assert_eq!(read, 1);
                assert!(data.iter().all(|b| *b == i as u8 + 1));
            }
        })
        .unwrap();
        assert!(error.is_none());
        assert_eq!(calls, [2, 0, 1]);
    }

    #[test]
    fn errors_and_panics_come_back_to_the_caller() {
        type Make = fn() -> Produce<'static>;
        let makes: [(Make, &str); 3] = [
            (
                || Box::new(|_, _| Err(io::Error::other("disk gone").into())),
                "`a`",
            ),
            (|| Box::new(|_, _| Ok(())), "0 bytes, expected 3"),
            (|| Box::new(|_, _| panic!("boom")), "boom"),
        ];
        for (make, expected) in makes {
            let (metadata, tensors) = layout();
            let feed = TensorFeed::new(&metadata, tensors, make()).unwrap();
            let (_, error) = with_stream(feed, |file| read_all(file, 4096)).unwrap();
            let error = error.unwrap().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
