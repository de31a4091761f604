//! `echoprobe send`: what it finds out, and how it says so.
