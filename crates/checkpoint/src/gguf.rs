//! A GGUF file as a source, or all files of a model that is split over several: its tensors are what the
//! headers list.

use std::borrow::Cow;
use std::ops::Range;
use std::path::{Path, PathBuf};

use dwindle_formats::container::{Container, is_container};
use dwindle_formats::gguf::{Header, Metadata, join, parts, read_header, read_part};
use dwindle_mapped::Mapping;

use super::{Error, Source, SourceFile, SourceTensor};

/// An open model.
#[derive(Debug)]
pub struct Gguf {
    path: PathBuf,
    metadata: Metadata,
    files: Vec<SourceFile>,
    parts: Vec<Part>,
    tensors: Vec<SourceTensor>,
    /// Of each tensor, its part and its place there.
    places: Vec<(usize, usize)>,
}

/// One of its files.
#[derive(Debug)]
struct Part {
    map: Mapping,
    header: Header,
}

/// Whether a file's tensors are not those of its model: it has factors, or compressed payloads.
fn is_compressed(header: &Header, bytes: &[u8]) -> bool {
    is_container(header) && Container::read_part(bytes).is_ok_and(|c| !c.is_stock())
}

impl Part {
    fn open(path: &Path, is_whole: bool) -> Result<Part, Error> {
        let map = Mapping::open(path)?;
        let header = match is_whole {
            true => read_header(&map),
            false => read_part(&map),
        };
        let header = header.map_err(|source| Error::Gguf {
            path: path.to_path_buf(),
            source,
        })?;
        if is_compressed(&header, &map) {
            return Err(Error::Container(path.to_path_buf()));
        }
        Ok(Part { map, header })
    }
}

impl Gguf {
    /// Maps a file, or all parts of the model that it is a part of, and checks the headers.
    ///
    /// # Errors
    /// When a file can't be read or is not an acceptable GGUF file, and when parts are missing or are not of one
    /// model.
    pub fn open(path: &Path) -> Result<Gguf, Error> {
        let paths = parts(path);
        let mut files = Vec::new();
        let mut parts = Vec::new();
        for (i, part) in paths.iter().enumerate() {
            if paths.len() > 1 && !part.exists() {
                return Err(Error::MissingPart {
                    path: part.clone(),
                    number: i + 1,
                    count: paths.len(),
                });
            }
            files.push(SourceFile::of(part)?);
            parts.push(Part::open(part, paths.len() == 1)?);
        }
        let metadata = match parts.as_slice() {
            [whole] => whole.header.metadata.clone(),
            _ => {
                let headers = parts.iter().map(|p| &p.header);
                let named: Vec<_> = paths.iter().cloned().zip(headers).collect();
                join(&named)?
            }
        };
        let all = parts.iter().enumerate();
        let places: Vec<(usize, usize)> = all
            .flat_map(|(i, part)| (0..part.header.tensors.len()).map(move |t| (i, t)))
            .collect();
        let tensor = |(part, index): &(usize, usize)| {
            let tensor = &parts[*part].header.tensors[*index];
            SourceTensor {
                name: tensor.name.clone(),
                ty: tensor.ty,
                shape: tensor.shape.clone(),
            }
        };
        Ok(Gguf {
            path: path.to_path_buf(),
            metadata,
            files,
            tensors: places.iter().map(tensor).collect(),
            parts,
            places,
        })
    }

    /// The path that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The model's metadata.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }
}

impl Source for Gguf {
    fn tensors(&self) -> &[SourceTensor] {
        &self.tensors
    }

    fn files(&self) -> &[SourceFile] {
        &self.files
    }

    fn bytes(&self, index: usize, span: Range<usize>) -> Cow<'_, [u8]> {
        let (part, tensor) = self.places[index];
        let Part { map, header } = &self.parts[part];
        Cow::Borrowed(&map[header.data_range(&header.tensors[tensor])][span])
    }

    fn release(&self, index: usize) {
        let (part, tensor) = self.places[index];
        let Part { map, header } = &self.parts[part];
        map.release(header.data_range(&header.tensors[tensor]));
    }
}
