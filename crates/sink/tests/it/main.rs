//! The sink over real nodes and stores.

mod delivering;
mod fixture;
