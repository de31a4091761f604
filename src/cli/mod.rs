//! What the three programs share at the terminal: how they end, and how values become text.
//!
//! Knows exit statuses, units, tables and colors; never what is shown.

#![forbid(unsafe_code)]

pub mod exit;
pub mod terminal;
pub mod text;
