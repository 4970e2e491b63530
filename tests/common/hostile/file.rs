//! A small model as a file that can be changed and written again, with digests that agree.

use std::path::Path;

use assert_cmd::Command;
use dwindle_formats::container::{
    ChunkGeometry, Container, ContainerWriter, EncodedChunk, Form, Part, StoredPlan, StoredTensor,
};
use dwindle_formats::gguf::{
    DEFAULT_ALIGNMENT, Metadata, TensorLayout, TensorType, encode_header, lay_out,
};

use crate::common::tiny::{self, Kind, Tiny};

/// What is written of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// A GGUF file without digests.
    Plain,
    /// A GGUF file with digests, of a model with experts.
    Signed,
    /// A container with factors.
    Container,
}

impl Written {
    pub const ALL: [Written; 3] = [Written::Plain, Written::Signed, Written::Container];

    pub fn extension(self) -> &'static str {
        match self {
            Written::Plain | Written::Signed => "gguf",
            Written::Container => "dwn",
        }
    }
}

/// A model in the terms of a file.
#[derive(Debug, Clone)]
pub struct File {
    pub written: Written,
    pub metadata: Metadata,
    pub plan: StoredPlan,
    /// The bytes of each part, in the plan's order.
    pub data: Vec<Vec<u8>>,
}

/// Bytes of data that a spoilt file may have.
const DATA_LIMIT: u64 = 1 << 25;

impl File {
    /// A good file, which the program has made.
    pub fn good(written: Written, dir: &Path) -> File {
        match written {
            Written::Plain => File::of(&tiny::tiny(TensorType::Q8_0)),
            Written::Signed => {
                let model = tiny::mixture(TensorType::F16);
                File::compressed(written, dir, &model, "type = \"q8_0\"\n")
            }
            Written::Container => {
                let model = tiny::low_rank(Kind::Untied, 32);
                let recipe = "type = \"q8_0\"\n\
                    [[rule]]\nroles = [\"ffn_up\", \"attn_q\"]\nmethod = \"svd\"\nrank = 32\n\
                    [[rule]]\nroles = [\"attn_k\"]\nmethod = \"tucker\"\nover = \"heads\"\nkeep = 0.5\n";
                File::compressed(written, dir, &model, recipe)
            }
        }
    }

    fn of(tiny: &Tiny) -> File {
        let tensors = tiny.layout.iter().map(|t| StoredTensor {
            name: t.name.clone(),
            shape: t.shape.clone(),
            ty: t.ty,
            method: "none".into(),
            parameters: Default::default(),
            form: Form::Dense,
            parts: vec![Part {
                name: t.name.clone(),
                ty: t.ty,
                shape: t.shape.clone(),
            }],
        });
        File {
            written: Written::Plain,
            metadata: tiny.metadata.clone(),
            plan: StoredPlan {
                tensors: tensors.collect(),
            },
            data: tiny.data.clone(),
        }
    }

    fn compressed(written: Written, dir: &Path, model: &Tiny, recipe: &str) -> File {
        let (source, rules) = (dir.join("source.gguf"), dir.join("recipe.toml"));
        let output = dir.join(format!("good.{}", written.extension()));
        model.write(&source);
        std::fs::write(&rules, recipe).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_dwindle"));
        command
            .arg("compress")
            .arg(&source)
            .arg("--recipe")
            .arg(&rules);
        command.arg("--output").arg(&output).assert().success();
        let bytes = std::fs::read(&output).unwrap();
        let container = Container::read(&bytes).unwrap();
        assert_eq!(container.plan.is_stock(), written == Written::Signed);
        let mut metadata = container.header.metadata.clone();
        metadata.retain(|key| !key.starts_with("dwindle."));
        let parts = 0..container.plan.parts().count();
        let data = parts.map(|part| container.decode(&bytes, part).unwrap());
        File {
            written,
            metadata,
            data: data.collect(),
            plan: container.plan,
        }
    }

    /// Whether it can be written at all: what no file can say is the readers' to refuse, and tested
    /// there.
    pub fn is_writable(&self) -> bool {
        let bytes: u64 = self.plan.parts().map(Part::bytes).sum();
        self.plan.check().is_ok()
            && bytes <= DATA_LIMIT
            && (self.written == Written::Container || self.plan.is_stock())
    }

    /// Gives each part as many bytes as its shape and type want.
    pub fn fill(&mut self) {
        for (part, data) in self.plan.parts().zip(&mut self.data) {
            let cycled = data.iter().copied().cycle();
            *data = cycled.take(part.bytes() as usize).collect();
        }
    }

    pub fn write(&self, path: &Path) {
        match self.written {
            Written::Plain => self.write_plain(path),
            _ => self.write_signed(path),
        }
    }

    fn write_plain(&self, path: &Path) {
        let layouts = self.plan.parts().map(|part| TensorLayout {
            name: part.name.clone(),
            shape: part.shape.clone(),
            ty: part.ty,
        });
        let alignment = self.metadata.get("general.alignment");
        let alignment = alignment.and_then(|v| v.as_u64());
        let alignment = alignment.filter(|n| n.is_power_of_two() && *n < 1 << 20);
        let alignment = alignment.unwrap_or(DEFAULT_ALIGNMENT);
        let (infos, len) = lay_out(layouts.collect(), alignment).unwrap();
        let mut bytes = encode_header(&self.metadata, &infos, alignment);
        let start = bytes.len();
        bytes.resize(start + len as usize, 0);
        for (info, data) in infos.iter().zip(&self.data) {
            let at = start + info.offset as usize;
            bytes[at..at + data.len()].copy_from_slice(data);
        }
        std::fs::write(path, bytes).unwrap();
    }

    fn write_signed(&self, path: &Path) {
        let (metadata, plan) = (self.metadata.clone(), self.plan.clone());
        let mut writer = ContainerWriter::create(path, metadata, plan, &[1; 32]).unwrap();
        let mut data = self.data.iter();
        for tensor in &self.plan.tensors {
            for (part, bytes) in tensor.parts.iter().zip(&mut data) {
                let geometry = ChunkGeometry::of(part);
                let len = (geometry.chunk_rows * geometry.row_bytes) as usize;
                for chunk in bytes.chunks(len) {
                    writer.push(EncodedChunk::raw(chunk)).unwrap();
                }
            }
            writer.end_tensor(0.0).unwrap();
        }
        writer.finish().unwrap();
    }
}
