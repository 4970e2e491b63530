//! Fits layers to the outputs of the compressed layers before them, with the original and the
//! compressed model running side by side.

mod influence;
mod observe;
mod repair;
mod rotary;
mod side_by_side;

pub use influence::influence;
pub use repair::repair;
pub use rotary::rotary_pairs;
pub use side_by_side::{FitError, FitOptions, FitText};
