//! A GGUF file as a source: its tensors are what its header lists.

use std::path::{Path, PathBuf};

use dwindle_formats::container::{Container, is_container};
use dwindle_formats::gguf::{Header, read_header, refuse_split};
use dwindle_mapped::Mapping;

use super::{Error, Source, SourceFile, SourceTensor};

/// An open GGUF file.
#[derive(Debug)]
pub struct Gguf {
    path: PathBuf,
    files: [SourceFile; 1],
    map: Mapping,
    header: Header,
    tensors: Vec<SourceTensor>,
}

/// Whether a file's tensors are not those of its model: it has factors, or compressed payloads.
fn is_compressed(header: &Header, bytes: &[u8]) -> bool {
    is_container(header) && Container::read(bytes).is_ok_and(|c| !c.is_stock())
}

impl Gguf {
    /// Maps a file and checks its header.
    ///
    /// # Errors
    /// When the file can't be read or is not an acceptable GGUF file.
    pub fn open(path: &Path) -> Result<Gguf, Error> {
        let files = [SourceFile::of(path)?];
        let map = Mapping::open(path)?;
        let header = refuse_split(path).and_then(|()| read_header(&map));
        let header = header.map_err(|source| Error::Gguf {
            path: path.to_path_buf(),
            source,
        })?;
        if is_compressed(&header, &map) {
            return Err(Error::Container(path.to_path_buf()));
        }
        let tensors = header
            .tensors
            .iter()
            .map(|t| SourceTensor {
                name: t.name.clone(),
                ty: t.ty,
                shape: t.shape.clone(),
            })
            .collect();
        Ok(Gguf {
            path: path.to_path_buf(),
            files,
            map,
            header,
            tensors,
        })
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The checked header.
    pub fn header(&self) -> &Header {
        &self.header
    }
}

impl Source for Gguf {
    fn tensors(&self) -> &[SourceTensor] {
        &self.tensors
    }

    fn files(&self) -> &[SourceFile] {
        &self.files
    }

    fn bytes(&self, index: usize) -> &[u8] {
        &self.map[self.header.data_range(&self.header.tensors[index])]
    }

    fn release(&self, index: usize) {
        self.map
            .release(self.header.data_range(&self.header.tensors[index]));
    }
}
