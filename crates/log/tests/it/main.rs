//! The log through its public face.
#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test that is wrong may panic, and its numbers are small"
)]

mod basics;
mod fixture;
mod floor;
mod housekeeping;
mod inspection;
mod steady;
