//! The gRPC edge of a Flumen node: `proto/flumen/v1` over a [`flumen_broker::Broker`].
//!
//! It decodes, calls the broker, encodes. It refuses to know JSON and how records are stored.
//! Calls are wired to hyper's HTTP/2 directly rather than through tonic's generated services,
//! because a batch should be sliced out of the frame it arrived in, a reply should leave as the
//! mapped pieces it is made of, and every refusal, also of an oversized message, should carry its
//! reason. Any gRPC client speaks to it.
//!
//! | File | Purpose |
//! |---|---|
//! | `server` | accept loop, connections, draining |
//! | `route` | from a path to the service that answers |
//! | `admin`, `producer`, `append`, `consumer`, `group`, `delivery` | the RPCs |
//! | `delivery/*` | settings and descriptions of delivery streams on the wire, for the CLI too |
//! | `request`, `response`, `frames` | messages in and out, without copies |
//! | `status`, `call` | refusals and their status codes |
//! | `attendant` | health and reflection |
//! | `drain`, `deadline` | how sessions end |
//! | `config` | every limit |
#![forbid(unsafe_code)]

mod admin;
mod append;
mod attendant;
mod call;
mod config;
mod consumer;
mod deadline;
mod delivery;
mod drain;
mod frames;
mod group;
mod producer;
mod request;
mod response;
mod route;
mod server;
mod status;

pub use config::GrpcConfig;
pub use delivery::{delivery_settings, wire_delivery_settings};
pub use server::{GrpcServer, StartError};
pub use status::ERROR_DOMAIN;
