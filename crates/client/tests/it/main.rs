//! The client against a broker: first a fake one whose every answer the test decides, then the real
//! one.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test that is wrong may panic, and its numbers are small"
)]

mod consumer;
mod damage;
mod deliveries;
mod end_to_end;
mod fake;
mod groups;
mod node;
mod producer;
mod replaced;
mod reshard;
