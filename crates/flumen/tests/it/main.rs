//! The binary as users run it: real processes, real sockets, real directories.
//!
//! `cfg(test)` on each module tells the lints that all of it is test code.

#[cfg(test)]
mod bad_input;
#[cfg(test)]
mod bad_start;
#[cfg(test)]
mod cli;
#[cfg(test)]
mod clocks;
#[cfg(test)]
mod delivery;
#[cfg(test)]
mod delivery_rpcs;
#[cfg(test)]
mod delivery_verbs;
#[cfg(test)]
mod disk;
#[cfg(test)]
mod doctor;
#[cfg(test)]
mod examples;
#[cfg(test)]
mod failing_disk;
#[cfg(test)]
mod full_disk;
#[cfg(test)]
mod gone;
#[cfg(test)]
mod group_wire;
#[cfg(test)]
mod groups;
#[cfg(test)]
mod journal;
#[cfg(test)]
mod kill;
#[cfg(test)]
mod lost_ack;
#[cfg(test)]
mod old_directory;
#[cfg(test)]
mod power_cut;
#[cfg(test)]
mod process;
#[cfg(test)]
mod reshard;
#[cfg(test)]
mod round_trip;
#[cfg(test)]
mod rpcs;
#[cfg(test)]
#[path = "../../../sink/tests/it/servers.rs"]
mod servers;
#[cfg(test)]
mod verbs;
#[cfg(test)]
mod wire;
