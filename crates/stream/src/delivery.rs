//! Delivery streams as the node remembers them: what each is to do, how far it came, what it holds.
//!
//! Settings and progress are bytes here; what they mean is the broker's and the sink's. The bytes
//! stand in `docs/format.md`, "Delivery records".
//!
//! - What a change does is written once: recovery and every commit run the same code, so that what
//!   is in memory is what the log adds up to.
//! - A number is never given twice, not even after its delivery stream is gone.
//!
//! | File | Purpose |
//! |---|---|
//! | `state`, `change` | what the durable changes add up to; their bytes |
//! | `records` | changes in records, and back |
//! | `delivery_log` | the log that changes and snapshots lie in |

mod change;
mod config;
mod delivery_log;
mod error;
mod records;
mod state;
#[cfg(test)]
mod tests;

pub use change::DeliveryChange;
pub use config::DeliveryConfig;
pub use delivery_log::DeliveryLog;
pub use error::DeliveryLogError;
pub use state::{DeliveryDefinition, DeliveryEnding, DeliveryProgress, StoredDelivery};
