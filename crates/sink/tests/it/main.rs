//! The sink through its public API, and against real object stores.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stderr,
    clippy::clone_on_ref_ptr,
    clippy::large_futures,
    reason = "a test that is wrong may panic, and one that is skipped says so"
)]

mod changing;
mod delivering;
mod exactly_once;
mod failing;
mod fixture;
mod idle;
mod servers;
mod shaping;
mod store;
mod transforming;
mod watched;
