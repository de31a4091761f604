//! What the three programs share at the terminal: how they end, and how values become text.
//!
//! Knows exit statuses, units, tables, colors and what became of an output; never what is shown.

#![forbid(unsafe_code)]

pub(crate) mod arguments;
pub mod exit;
pub(crate) mod table;
pub(crate) mod terminal;
pub(crate) mod text;
