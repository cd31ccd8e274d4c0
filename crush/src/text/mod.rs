//! The text format of `crushtool`.
//!
//! ```text
//! map     = (tunable | device | type)* bucket* rule* choose_args*
//! tunable = "tunable" NAME NUMBER
//! device  = "device" ID NAME ("class" NAME)?
//! type    = "type" NUMBER NAME
//! bucket  = TYPE NAME "{" (id | "alg" NAME | "hash" (0 | "rjenkins1") | item)* "}"
//! id      = "id" -ID ("class" NAME)?
//! item    = "item" NAME ("weight" DECIMAL | "pos" INDEX)*
//! rule    = "rule" NAME? "{" ("id" | "ruleset") NUMBER "type" ("replicated" | "erasure")
//!           ("min_size" NUMBER)? ("max_size" NUMBER)? ("step" STEP)* "}"
//! choose_args = "choose_args" POOL "{" ("{" "bucket_id" -ID ("weight_set" "[" ROW* "]")? ("ids" IDS)? "}")* "}"
//! ```
//!
//! Items are defined before the buckets that hold them. `#` starts a comment. Defaults that differ from
//! intuition: no `tunable` lines means the oldest profile, not the newest, and a bucket without an id gets the
//! greatest free one.

mod export;
mod lexer;
mod parser;
mod sections;
mod weight;

pub use weight::weight_from_text;

use crate::map::CrushMap;

/// Why a text is not a map, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {message}")]
pub struct ParseError {
    /// Counted from 1.
    pub line: u32,
    /// Counted from 1, in characters.
    pub column: u32,
    /// A sentence without position.
    pub message: String,
}

impl CrushMap {
    /// Reads a map in the text format.
    pub fn parse_text(text: &str) -> Result<CrushMap, ParseError> {
        parser::Parser::new(text).map()
    }

    /// Writes the map in the text format, such that reading it gives the same mappings.
    ///
    /// Weights are written with as many digits as they need. Two things the format cannot express are lost, and
    /// neither can come from a text: an item weight that is no multiple of a 24-bit float (unless it is what the
    /// item's own items sum to), and straw lengths computed under another `straw_calc_version`.
    pub fn to_text(&self) -> String {
        export::export(self)
    }
}
