//! What a rule of a recipe wants done, and how it is written.

use dwindle_formats::container::Over;
use dwindle_formats::gguf::TensorType;
use serde::Deserialize;

use super::recipe::Rule;
use dwindle_method::prune::Pruning;
use dwindle_method::sparsity::Pattern;

/// The methods that a rule may name.
const METHODS: &str = "`quantize`, `svd`, `sparse-low-rank`, `tucker`, `cp`, `tensor-train`, \
                       `magnitude`, `wanda` and `sparsegpt`";

/// Neighbouring layers of a stack where a rule does not say.
const STACK: u64 = 4;

/// Cores of a tensor train of one matrix where a rule does not say.
const MODES: u64 = 2;

/// A way to make a tensor smaller, with its parameters.
#[derive(Debug, Clone, PartialEq)]
pub enum Method {
    /// Every element in another type; `None` keeps the source's.
    Quantize(Option<TensorType>),
    /// Two factors by truncated singular value decomposition.
    Svd {
        /// How many singular values stay.
        rank: Rank,
        /// Whether tensors that read the same input share the factor that reads it.
        joint: bool,
        /// The factors' element type.
        ty: TensorType,
    },
    /// A pruned matrix and two factors.
    SparseLowRank {
        /// How the pruned elements are chosen.
        pruning: Pruning,
        /// How many, and in what pattern.
        pattern: Pattern,
        /// The factors' rank.
        rank: Rank,
        /// The factors' element type; the pruned matrix keeps the source's.
        ty: TensorType,
    },
    /// A decomposition of a tensor of three ways, or of a matrix as an operator.
    Multilinear {
        /// Which.
        decomposition: Decomposition,
        /// What the first way is; `None` for the experts of a stack, else for a plain matrix.
        over: Option<Over>,
        /// Neighbouring layers of a stack over layers.
        stack: u64,
        /// How the ranks are chosen.
        ranks: Ranks,
        /// The factors' element type.
        ty: TensorType,
    },
    /// Some elements become zero.
    Prune {
        /// How they are chosen.
        pruning: Pruning,
        /// How many, and in what pattern.
        pattern: Pattern,
        /// The element type of the rest; `None` keeps the source's.
        ty: Option<TensorType>,
    },
}

/// The decompositions of more than two ways.
#[derive(Debug, Clone, PartialEq)]
pub enum Decomposition {
    /// A core, and a factor for each way but perhaps the first.
    Tucker {
        /// Whether the first way gets a factor too.
        all_ways: bool,
    },
    /// A sum of outer products.
    Cp,
    /// A chain of cores; for a plain matrix an operator of so many.
    TensorTrain {
        /// Cores of a plain matrix.
        modes: u64,
    },
}

impl Decomposition {
    /// Its name in recipes.
    pub fn name(&self) -> &'static str {
        match self {
            Decomposition::Tucker { .. } => "tucker",
            Decomposition::Cp => "cp",
            Decomposition::TensorTrain { .. } => "tensor-train",
        }
    }
}

/// How the rank of two factors is chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rank {
    /// This many.
    Fixed(u64),
    /// As many as keep this fraction of the tensor's parameters, factors counted.
    Keep(f64),
    /// As few as hold this fraction of the squared singular values' sum.
    Energy(f64),
    /// This part of the row length.
    OfRow(f64),
    /// So that all of the rule's tensors together keep this fraction of their parameters, each as
    /// many as its measured sensitivity deserves.
    Auto(f64),
}

/// How the ranks of more than two factors are chosen.
#[derive(Debug, Clone, PartialEq)]
pub enum Ranks {
    /// These, one a way or a bond.
    Fixed(Vec<u64>),
    /// The best that keep this fraction of the parameters, factors counted.
    Keep(f64),
    /// The smallest with at most this relative error.
    Tolerance(f64),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRule {
    #[serde(default)]
    roles: Vec<String>,
    #[serde(default)]
    layers: Vec<String>,
    name: Option<String>,
    method: Option<String>,
    #[serde(rename = "type")]
    ty: Option<String>,
    rank: Option<RankWish>,
    ranks: Option<Vec<u64>>,
    keep: Option<f64>,
    energy: Option<f64>,
    tolerance: Option<f64>,
    joint: Option<bool>,
    over: Option<Over>,
    stack: Option<u64>,
    modes: Option<u64>,
    all_ways: Option<bool>,
    sparsity: Option<f64>,
    pattern: Option<String>,
    pruning: Option<String>,
}

/// A number, a fraction of the row length such as `"1/32"`, or `"auto"`.
#[derive(Deserialize)]
#[serde(untagged)]
enum RankWish {
    Number(u64),
    Word(String),
}

impl RawRule {
    pub(super) fn check(self) -> Result<Rule, String> {
        let layers = self
            .layers
            .iter()
            .map(|text| text.parse())
            .collect::<Result<_, String>>()?;
        let method = self.method()?;
        Ok(Rule {
            roles: self.roles,
            layers,
            name: self.name,
            method,
        })
    }

    fn method(&self) -> Result<Method, String> {
        let name = self.method.as_deref().unwrap_or("quantize");
        let pruning = Pruning::from_name(name);
        let three_way = match name {
            "tucker" => Some(Decomposition::Tucker {
                all_ways: self.all_ways.unwrap_or(false),
            }),
            "cp" => Some(Decomposition::Cp),
            "tensor-train" => Some(Decomposition::TensorTrain {
                modes: self.modes.unwrap_or(MODES),
            }),
            _ => None,
        };
        let (svd, hybrid) = (name == "svd", name == "sparse-low-rank");
        let multilinear = three_way.is_some();
        let known = svd || hybrid || multilinear || pruning.is_some() || name == "quantize";
        if !known {
            return Err(format!("method `{name}` is not known; known are {METHODS}"));
        }
        for (given, belongs, key) in [
            (self.rank.is_some(), svd || hybrid || name == "cp", "rank"),
            (self.ranks.is_some(), multilinear && name != "cp", "ranks"),
            (self.keep.is_some(), svd || hybrid || multilinear, "keep"),
            (self.energy.is_some(), svd, "energy"),
            (self.tolerance.is_some(), multilinear, "tolerance"),
            (self.joint.is_some(), svd, "joint"),
            (self.over.is_some(), multilinear, "over"),
            (
                self.stack.is_some(),
                self.over == Some(Over::Layers),
                "stack",
            ),
            (
                self.modes.is_some(),
                name == "tensor-train" && self.over.is_none(),
                "modes",
            ),
            (self.all_ways.is_some(), name == "tucker", "all_ways"),
            (
                self.sparsity.is_some(),
                hybrid || pruning.is_some(),
                "sparsity",
            ),
            (
                self.pattern.is_some(),
                hybrid || pruning.is_some(),
                "pattern",
            ),
            (self.pruning.is_some(), hybrid, "pruning"),
        ] {
            if given && !belongs {
                return Err(format!(
                    "`{key}` has no meaning for `{name}`{}",
                    if key == "stack" {
                        " without `over = \"layers\"`"
                    } else {
                        ""
                    }
                ));
            }
        }
        let ty = match self.ty.as_deref() {
            None | Some("source") => None,
            Some(name) => Some(name.parse::<TensorType>().map_err(|e| e.to_string())?),
        };
        let factors = ty.unwrap_or(TensorType::Q8_0);
        if let Some(decomposition) = three_way {
            return self.multilinear(decomposition, factors);
        }
        if let Some(pruning) = pruning {
            return Ok(Method::Prune {
                pruning,
                pattern: self.zeros(name)?,
                ty,
            });
        }
        match name {
            "svd" => Ok(Method::Svd {
                rank: self.one_rank(name)?,
                joint: self.joint.unwrap_or(false),
                ty: factors,
            }),
            "sparse-low-rank" => Ok(Method::SparseLowRank {
                pruning: match self.pruning.as_deref() {
                    None | Some("wanda") => Pruning::Wanda,
                    Some("sparsegpt") => Pruning::SparseGpt,
                    Some(other) => {
                        return Err(format!(
                            "`pruning` is `{other}`, expected `wanda` or `sparsegpt`"
                        ));
                    }
                },
                pattern: self.zeros(name)?,
                rank: match self.one_rank(name)? {
                    rank @ (Rank::Fixed(_) | Rank::Keep(_) | Rank::OfRow(_)) => rank,
                    _ => {
                        return Err("`sparse-low-rank` needs a number for `rank`, or `keep`".into());
                    }
                },
                ty: factors,
            }),
            _ if self.ty.is_some() => Ok(Method::Quantize(ty)),
            _ => Err("`quantize` needs `type`, such as `type = \"q8_0\"`".into()),
        }
    }

    fn one_rank(&self, name: &str) -> Result<Rank, String> {
        let number = match &self.rank {
            None => None,
            Some(RankWish::Number(rank)) => Some(*rank),
            Some(RankWish::Word(word)) if word == "auto" && name == "svd" => {
                return match (self.keep, self.energy) {
                    (Some(keep), None) => Ok(Rank::Auto(fraction("keep", keep)?)),
                    _ => Err("`rank = \"auto\"` shares a budget: it needs `keep`".into()),
                };
            }
            Some(RankWish::Word(word)) => {
                return match (part_of_one(word), self.keep, self.energy) {
                    (Some(part), None, None) => Ok(Rank::OfRow(part)),
                    _ => Err(format!(
                        "`rank` is `{word}`, expected a number, a part of the row length such as \
                         `1/32`, or with `svd` and `keep` `auto`"
                    )),
                };
            }
        };
        match (number, self.keep, self.energy) {
            (Some(0), None, None) => Err("`rank` is 0, expected at least 1".into()),
            (Some(rank), None, None) => Ok(Rank::Fixed(rank)),
            (None, Some(keep), None) => Ok(Rank::Keep(fraction("keep", keep)?)),
            (None, None, Some(energy)) => Ok(Rank::Energy(fraction("energy", energy)?)),
            _ => Err("it needs exactly one of `rank`, `keep` and `energy`".into()),
        }
    }

    fn multilinear(&self, decomposition: Decomposition, ty: TensorType) -> Result<Method, String> {
        let one = match &self.rank {
            None => None,
            Some(RankWish::Number(rank)) => Some(vec![*rank]),
            Some(RankWish::Word(word)) => {
                return Err(format!("`rank` is `{word}`, expected a number"));
            }
        };
        let ranks = match (self.ranks.clone().or(one), self.keep, self.tolerance) {
            (Some(ranks), None, None) if ranks.contains(&0) || ranks.is_empty() => {
                return Err(format!("the ranks {ranks:?} are not all at least 1"));
            }
            (Some(ranks), None, None) => Ranks::Fixed(ranks),
            (None, Some(keep), None) => Ranks::Keep(fraction("keep", keep)?),
            (None, None, Some(t)) if (0.0..1.0).contains(&t) => Ranks::Tolerance(t),
            (None, None, Some(t)) => {
                return Err(format!(
                    "`tolerance` is {t}, expected 0 or more and below 1"
                ));
            }
            _ => return Err("it needs exactly one of `ranks`, `keep` and `tolerance`".into()),
        };
        let stack = self.stack.unwrap_or(STACK);
        let modes = self.modes.unwrap_or(MODES);
        if stack < 2 {
            return Err(format!("`stack` is {stack}, expected 2 layers or more"));
        }
        if !(2..=16).contains(&modes) {
            return Err(format!("`modes` is {modes}, expected 2 to 16"));
        }
        Ok(Method::Multilinear {
            decomposition,
            over: self.over,
            stack,
            ranks,
            ty,
        })
    }

    /// Reads `sparsity = 0.5`, the share of zeros, or `pattern = "2:4"`: two of four stay.
    fn zeros(&self, name: &str) -> Result<Pattern, String> {
        match (self.sparsity, self.pattern.as_deref()) {
            (None, None) => Err(format!(
                "`{name}` needs `sparsity = 0.5` or `pattern = \"2:4\"`"
            )),
            (Some(s), None) if (0.0..=1.0).contains(&s) => Ok(Pattern::Unstructured(s)),
            (Some(s), None) => Err(format!(
                "`sparsity` is {s}, expected a fraction from 0 to 1"
            )),
            (None, Some(text)) => {
                let parsed = text.split_once(':').and_then(|(keep, group)| {
                    let (keep, group) = (keep.parse().ok()?, group.parse().ok()?);
                    (keep <= group && group > 0).then_some(Pattern::Groups { keep, group })
                });
                parsed.ok_or_else(|| format!("`pattern` is `{text}`, expected the form `2:4`"))
            }
            (Some(_), Some(_)) => Err("give `sparsity` or `pattern`, not both".into()),
        }
    }
}

/// Reads `1/32`.
fn part_of_one(text: &str) -> Option<f64> {
    let (part, whole) = text.split_once('/')?;
    let (part, whole): (u32, u32) = (part.trim().parse().ok()?, whole.trim().parse().ok()?);
    (part > 0 && part <= whole).then(|| f64::from(part) / f64::from(whole))
}

fn fraction(key: &str, f: f64) -> Result<f64, String> {
    if f > 0.0 && f <= 1.0 {
        return Ok(f);
    }
    Err(format!(
        "`{key}` is {f}, expected a fraction above 0 and up to 1"
    ))
}
