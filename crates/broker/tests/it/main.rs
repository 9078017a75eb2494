//! The broker through its public API: over memory that forgets, tears and fails, and real files.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test that is wrong may panic, and its numbers are small"
)]

mod alone;
mod append;
mod auto_scale;
mod clocks;
mod deliveries;
mod fixture;
mod groups;
mod moves;
mod put;
mod read;
mod reshard;
mod retention;
mod space;
mod stays;
mod vouching;
