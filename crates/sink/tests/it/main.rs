//! The sink through its public API, and against real object stores.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stderr,
    clippy::clone_on_ref_ptr,
    reason = "a test that is wrong may panic, one that is skipped says so, and stores become trait objects"
)]

mod changing;
mod delivering;
mod exactly_once;
mod failing;
mod fixture;
mod forks;
mod idle;
mod servers;
mod shaping;
mod store;
mod transforming;
mod watched;
