//! Conversations with `echoprobe URL`: what it finds out, and how it says so.
