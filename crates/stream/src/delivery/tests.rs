//! The log of delivery streams.
