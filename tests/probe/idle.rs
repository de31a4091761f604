//! `echoprobe idle`: what it finds out, and how it says so.
