//! The protobuf code generated from `proto/` and the only conversions between it and
//! `flumen-record`.
//!
//! It refuses to know the broker. `cargo xtask codegen` writes `generated/`; a test there compares.
//!
//! | File | Purpose |
//! |---|---|
//! | `convert` | between protobuf and record types, with errors that name the field |
//! | `codec` | how messages become bytes: prost, with buffers for batches |
//! | `generated/` | messages, clients and services (checked in, no `protoc` needed) |
#![forbid(unsafe_code)]

pub mod codec;
pub mod convert;

/// Package `flumen.v1`: messages, clients (`*_client`) and services (`*_server`).
#[expect(
    missing_docs,
    unused_qualifications,
    clippy::allow_attributes_without_reason,
    clippy::clone_on_ref_ptr,
    clippy::too_many_lines,
    reason = "generated; what needs words has them in proto/"
)]
pub mod v1 {
    include!("generated/flumen.v1.rs");
}

/// The encoded `FileDescriptorSet` of package `flumen.v1`, for reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!("generated/descriptors.bin");

/// Largest message either side sends or takes: one batch of 16 MiB and what is around it.
pub const MAX_MESSAGE_BYTES: usize = 17 << 20;
