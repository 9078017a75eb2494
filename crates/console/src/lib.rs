//! Metrics and health over HTTP: `/metrics`, `/healthz`, `/readyz`, `/version`.
//!
//! It only reads, and answers from the first moment of a start: the socket is bound before the
//! data directory is opened, so that somebody who waits sees "recovering" instead of a closed port.
//!
//! | File | Purpose |
//! |---|---|
//! | `config` | limits |
//! | `node` | what the node is doing: starting, serving, draining |
//! | `exposition` | the broker's numbers as OpenMetrics text |
//! | `deliveries` | those of delivery streams, with the names Firehose has for them |
//! | `process` | what the system says about this process |
//! | `server` | routes and the accept loop |
#![forbid(unsafe_code)]

mod config;
mod deliveries;
mod exposition;
mod node;
mod process;
mod server;

pub use config::ConsoleConfig;
pub use node::Node;
pub use server::serve;
