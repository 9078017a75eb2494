//! The one binary: config, wiring, signals, logs, and the commands people type.
//!
//! A library only so that tests can walk the command tree; `main` calls [`run`].
//!
//! | File | Purpose |
//! |---|---|
//! | `cli` | the command tree and global flags |
//! | `config`, `config/*` | the node's settings, layer over layer, with their origins |
//! | `serve` | a node from its settings to its end |
//! | `broker_process` | a broker of our own as a child process, for `demo` and `bench` |
//! | `command/*` | one file per command |
//! | `inspection` | a data directory from outside |
//! | `csv` | as much of CSV as it takes to know that a file is one |
//! | `output`, `quantity`, `time` | what is printed, and how sizes, durations and times are typed |
//! | `telemetry` | logs of the node |
#![forbid(unsafe_code)]

mod broker_process;
mod cli;
mod command;
mod config;
mod csv;
mod failure;
mod inspection;
mod output;
mod quantity;
mod repair;
mod serve;
mod telemetry;
mod time;

pub use cli::{command_tree, run};
