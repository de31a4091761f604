//! A server that loses, delays, duplicates, reorders and corrupts by a seeded plan.
