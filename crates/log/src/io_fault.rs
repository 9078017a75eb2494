//! What the file system said no with, in words that say what to do.

use std::fmt;
use std::io::{Error, ErrorKind};

use rustix::io::Errno;

/// Why the file system failed at something, by its error number: the standard library calls most of
/// what disks say "uncategorized".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IoFault {
    /// The disk, or the file system on it, failed.
    Disk,
    /// The file system takes no writes.
    ReadOnly,
    /// No space is left.
    Full,
    /// The system refuses it to this user.
    Denied,
    /// There is no such file or directory.
    Missing,
    /// The process, or the system, has too many files open.
    TooManyFiles,
    /// Memory has run out.
    Memory,
    /// The bytes are not what they must be.
    Damaged,
    /// Something else.
    Other(ErrorKind, Option<i32>),
}

impl From<&Error> for IoFault {
    fn from(error: &Error) -> Self {
        let by_number = Errno::from_io_error(error).and_then(|errno| {
            Some(match errno {
                // The last two: "structure needs cleaning", and what XFS says after a shutdown.
                Errno::IO | Errno::NXIO | Errno::NODEV | Errno::UCLEAN | Errno::SHUTDOWN => {
                    Self::Disk
                }
                Errno::BADMSG | Errno::STALE | Errno::NOTCONN | Errno::REMOTEIO => Self::Disk,
                Errno::NOMEDIUM | Errno::TIMEDOUT => Self::Disk,
                Errno::ROFS => Self::ReadOnly,
                Errno::NOSPC | Errno::DQUOT => Self::Full,
                Errno::ACCESS | Errno::PERM => Self::Denied,
                Errno::NOENT | Errno::NOTDIR => Self::Missing,
                Errno::MFILE | Errno::NFILE => Self::TooManyFiles,
                Errno::NOMEM => Self::Memory,
                _ => return None,
            })
        });
        by_number.unwrap_or_else(|| Self::from_kind(error.kind(), error.raw_os_error()))
    }
}

impl From<ErrorKind> for IoFault {
    fn from(kind: ErrorKind) -> Self {
        Self::from_kind(kind, None)
    }
}

impl IoFault {
    fn from_kind(kind: ErrorKind, number: Option<i32>) -> Self {
        match kind {
            ErrorKind::ReadOnlyFilesystem => Self::ReadOnly,
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Self::Full,
            ErrorKind::PermissionDenied => Self::Denied,
            ErrorKind::NotFound => Self::Missing,
            ErrorKind::OutOfMemory => Self::Memory,
            ErrorKind::InvalidData | ErrorKind::UnexpectedEof => Self::Damaged,
            kind => Self::Other(kind, number),
        }
    }

    /// A stable name for programs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Disk => "disk",
            Self::ReadOnly => "read_only",
            Self::Full => "full",
            Self::Denied => "denied",
            Self::Missing => "missing",
            Self::TooManyFiles => "too_many_files",
            Self::Memory => "memory",
            Self::Damaged => "damaged",
            Self::Other(..) => "other",
        }
    }

    /// Whether the disk must be looked at before anything else.
    pub fn is_of_the_disk(self) -> bool {
        matches!(self, Self::Disk | Self::ReadOnly)
    }
}

impl fmt::Display for IoFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Disk => {
                "the disk failed; look at the kernel's log, mend or replace the disk, then restart"
            }
            Self::ReadOnly => {
                "the file system is read-only, as it is after an error; look at the kernel's log, mount it anew, then restart"
            }
            Self::Full => "no space is left; free some",
            Self::Denied => "permission denied; give the file back to the broker's user",
            Self::Missing => "it is missing; run `flumen doctor`",
            Self::TooManyFiles => "too many files are open; raise the limit (`ulimit -n`)",
            Self::Memory => "no memory is left",
            Self::Damaged => "its bytes are not what they must be; run `flumen doctor`",
            Self::Other(kind, None) => return write!(f, "{kind}"),
            Self::Other(_, Some(number)) => {
                return write!(f, "{}", Error::from_raw_os_error(*number));
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a shut-down file system says was shown as "uncategorized error".
    #[test]
    fn what_disks_say_has_a_name() {
        for (errno, name) in [
            (Errno::IO, "disk"),
            (Errno::UCLEAN, "disk"),
            (Errno::SHUTDOWN, "disk"),
            (Errno::ROFS, "read_only"),
            (Errno::NOSPC, "full"),
            (Errno::DQUOT, "full"),
            (Errno::MFILE, "too_many_files"),
            (Errno::NOENT, "missing"),
            (Errno::XDEV, "other"),
        ] {
            let fault = IoFault::from(&Error::from(errno));
            assert_eq!(fault.name(), name, "{errno}");
            assert!(!fault.to_string().contains("uncategorized"), "{fault}");
        }
        let fault = IoFault::from(&Error::from(ErrorKind::InvalidData));
        assert_eq!(fault, IoFault::Damaged);
        let fault = IoFault::from(&Error::from_raw_os_error(9999));
        assert!(fault.to_string().contains("9999"), "{fault}");
    }
}
