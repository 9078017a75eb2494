//! The log through its public face.

#[cfg(test)]
mod basics;
#[cfg(test)]
mod crash_images;
#[cfg(test)]
mod fixture;
#[cfg(test)]
mod housekeeping;
#[cfg(test)]
mod inspection;
#[cfg(test)]
mod ledger;
#[cfg(test)]
mod machine;
