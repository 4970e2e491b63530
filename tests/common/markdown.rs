//! The parts of a Markdown page that can be tried.

/// A fenced block.
pub struct Block {
    /// The word after the fence; empty if there is none.
    pub language: String,
    /// What is inside.
    pub text: String,
}

impl Block {
    /// The name in the first line, a comment.
    #[track_caller]
    pub fn file_name(&self) -> &str {
        let line = self.text.lines().next().unwrap_or_default();
        line.strip_prefix("# ")
            .unwrap_or_else(|| panic!("the first line names no file: {}", self.text))
    }
}

/// The fenced blocks of a page, in order.
pub fn blocks(page: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut open: Option<Block> = None;
    for line in page.lines() {
        match (line.strip_prefix("```"), &mut open) {
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some(language), None) => {
                open = Some(Block {
                    language: language.to_string(),
                    text: String::new(),
                });
            }
            (None, Some(block)) => {
                block.text.push_str(line);
                block.text.push('\n');
            }
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "a block is not closed");
    blocks
}

/// Targets of links into the repository, apart from those into the page itself.
pub fn links(page: &str) -> Vec<&str> {
    let targets = page.split("](").skip(1).filter_map(|t| t.split(')').next());
    targets
        .filter(|t| !t.contains("://") && !t.starts_with('#'))
        .collect()
}
