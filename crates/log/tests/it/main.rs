//! The log through its public face.

mod basics;
mod fixture;
mod housekeeping;
mod inspection;
