//! `echoprobe mtu`: what it finds out, and how it says so.
