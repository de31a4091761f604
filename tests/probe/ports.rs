//! `echoprobe ports`: what it finds out, and how it says so.
