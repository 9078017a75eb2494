//! Names that users give.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::error::NameError;

/// A kind of name: text of 1 to so many of `a-z A-Z 0-9 _ . -`.
macro_rules! name {
    ($(#[$doc:meta])* $name:ident: $max_bytes:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The longest name, in bytes.
            pub const MAX_BYTES: usize = $max_bytes;

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                check(text, Self::MAX_BYTES)?;
                Ok(Self(Arc::from(text)))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name! {
    /// A stream's name: 1 to 128 of `a-z A-Z 0-9 _ . -`. Cheap to clone.
    StreamName: 128
}

name! {
    /// A consumer group's name, unique in its stream: as a stream's. Cheap to clone.
    GroupName: 128
}

name! {
    /// A member's name, unique in its group: as a stream's. Cheap to clone.
    MemberName: 128
}

name! {
    /// A delivery stream's name: 1 to 64 of `a-z A-Z 0-9 _ . -`. Cheap to clone.
    DeliveryName: 64
}

fn check(text: &str, max_bytes: usize) -> Result<(), NameError> {
    if text.is_empty() || text.len() > max_bytes {
        return Err(NameError::Length {
            bytes: text.len(),
            max: max_bytes,
        });
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    match text.chars().find(|c| !allowed(*c)) {
        Some(character) => Err(NameError::Character { character }),
        None => Ok(()),
    }
}
