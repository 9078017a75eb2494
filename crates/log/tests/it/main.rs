//! The log through its public face.
#![expect(
    clippy::cast_possible_truncation,
    reason = "the numbers of a test are small"
)]

#[cfg(test)]
mod basics;
#[cfg(test)]
mod crash_images;
#[cfg(test)]
mod faults;
#[cfg(test)]
mod fixture;
#[cfg(test)]
mod floor;
#[cfg(test)]
mod housekeeping;
#[cfg(test)]
mod inspection;
#[cfg(test)]
mod ledger;
#[cfg(test)]
mod machine;
#[cfg(test)]
mod model;
#[cfg(test)]
mod searches;
#[cfg(test)]
mod steady;
#[cfg(test)]
mod vouching;
