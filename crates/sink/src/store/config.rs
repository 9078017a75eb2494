//! How long stores are waited for, and how large objects may be.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How stores are talked to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StoreConfig {
    /// A connection stands after this many milliseconds, or the attempt fails.
    pub connect_timeout_ms: u64,
    /// A request without its body is answered after this many milliseconds, or the attempt fails.
    pub request_timeout_ms: u64,
    /// On top of that, a body may take as long as it needs at this pace.
    pub slowest_bytes_per_s: u64,
    /// Bytes of an object at most. S3 takes 5 GiB in one request.
    pub object_bytes_max: u64,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            connect_timeout_ms: 5_000,
            request_timeout_ms: 60_000,
            slowest_bytes_per_s: 1 << 20,
            object_bytes_max: 512 << 20,
        }
    }
}

impl StoreConfig {
    /// How long a request with this many bytes may take.
    pub(super) fn patience(&self, bytes: u64) -> Duration {
        let body_ms = bytes.saturating_mul(1000) / self.slowest_bytes_per_s.max(1);
        Duration::from_millis(self.request_timeout_ms.saturating_add(body_ms))
    }
}
