//! The log through its public face.

mod basics;
mod crash_images;
mod fixture;
mod housekeeping;
mod inspection;
mod ledger;
mod machine;
