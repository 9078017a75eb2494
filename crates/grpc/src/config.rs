//! What can be set about the gRPC edge.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Limits and windows of the gRPC server. Production values by default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GrpcConfig {
    /// TCP connections at once; further ones are closed at once.
    pub connections_max: u32,
    /// Open RPCs on one connection (HTTP/2 `SETTINGS_MAX_CONCURRENT_STREAMS`).
    pub sessions_per_connection_max: u32,
    /// A new connection must begin to speak HTTP/2 within this time.
    pub handshake_timeout_ms: u64,
    /// Largest request message: one batch of 16 MiB and what is around it.
    pub message_bytes_max: u32,
    /// Largest HTTP/2 frame the server takes (16 KiB to 16 MiB).
    pub frame_bytes_max: u32,
    /// What one session may send before the server has read it.
    pub session_window_bytes: u32,
    /// What all sessions of a connection together may send before the server has read it.
    pub connection_window_bytes: u32,
    /// Response bytes buffered per session while its client does not read (a reply more may be).
    pub send_buffer_bytes: u32,
    /// Request headers, in bytes.
    pub header_bytes_max: u32,
    /// Sessions a client may reset before the server has seen them.
    pub pending_resets_max: u32,
    /// Sessions the server resets for a client's faults before it closes the connection.
    pub fault_resets_max: u32,
    /// A quiet connection is pinged this often.
    pub keepalive_interval_ms: u64,
    /// A connection that leaves a ping unanswered this long is closed.
    pub keepalive_timeout_ms: u64,
    /// Bytes of an Append session that are gathered, when they are there already, before they go to
    /// the lanes together.
    pub burst_bytes_max: u32,
    /// Messages that are gathered so.
    pub burst_messages_max: u32,
    /// How long sessions may take to end when the server shuts down; what is left is cut off.
    pub drain_timeout_ms: u64,
}

impl Default for GrpcConfig {
    fn default() -> Self {
        Self {
            connections_max: 4_096,
            sessions_per_connection_max: 4_096,
            handshake_timeout_ms: 10_000,
            message_bytes_max: 17 << 20,
            frame_bytes_max: 1 << 20,
            session_window_bytes: 8 << 20,
            connection_window_bytes: 16 << 20,
            send_buffer_bytes: 1 << 20,
            header_bytes_max: 16 << 10,
            pending_resets_max: 64,
            fault_resets_max: 1_024,
            keepalive_interval_ms: 30_000,
            keepalive_timeout_ms: 20_000,
            burst_bytes_max: 4 << 20,
            burst_messages_max: 256,
            drain_timeout_ms: 10_000,
        }
    }
}

impl GrpcConfig {
    pub(crate) fn handshake_timeout(&self) -> Duration {
        Duration::from_millis(self.handshake_timeout_ms)
    }

    pub(crate) fn keepalive_interval(&self) -> Duration {
        Duration::from_millis(self.keepalive_interval_ms)
    }

    pub(crate) fn keepalive_timeout(&self) -> Duration {
        Duration::from_millis(self.keepalive_timeout_ms)
    }

    pub(crate) fn drain_timeout(&self) -> Duration {
        Duration::from_millis(self.drain_timeout_ms)
    }
}
