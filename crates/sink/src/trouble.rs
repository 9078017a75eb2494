//! What can go wrong with a delivery stream, and what is done about it.

use flumen_broker::{Error, SettingRefused};
use thiserror::Error;

use crate::filling::FillError;
use crate::progress::ProgressError;
use crate::spool::SpoolError;
use crate::store::StoreError;
use crate::transform::InvocationError;

/// Why delivery does not go on.
#[derive(Debug, Error)]
pub(crate) enum Trouble {
    /// The destination.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The spool, or an encoder that writes to it.
    #[error(transparent)]
    Fill(#[from] FillError),
    /// The node: reading the source, saving where this stands.
    #[error(transparent)]
    Node(#[from] Error),
    /// The dead-letter stream.
    #[error("the dead-letter stream does not take records: {0}")]
    DeadLetters(Error),
    /// The transform; its records are on their way to the error prefix.
    #[error("{0}; its records go to the error prefix")]
    Transform(InvocationError),
    /// Settings that were fine once, and are not for this version.
    #[error(transparent)]
    Settings(#[from] SettingRefused),
    /// A broken promise of our own code.
    #[error("a bug stopped this delivery stream (the log has it); it runs again after a restart")]
    Bug,
    /// What was saved cannot be read.
    #[error(transparent)]
    Progress(#[from] ProgressError),
    /// A manifest is not the one that this state of the delivery stream stands for.
    #[error(
        "the manifest of cut {cut} at {key} was written by another ({found}): a copy of this data \
         directory delivers there too, or this one was restored from a backup, or two delivery streams \
         of one name write under one prefix; stop the other, then `flumen delivery resume \
         --new-incarnation` delivers what this node has and that manifest does not name, under new names"
    )]
    Forked {
        /// The cut.
        cut: u64,
        /// The key of its manifest.
        key: String,
        /// What is there.
        found: String,
    },
    /// What a planned cut became is gone from the spool, and made anew it could become something else:
    /// by a transform, by `now`, by the order in which records came.
    #[error(
        "the spool of cut {cut} is lost or damaged ({detail}); objects of it may have been written \
         that no manifest names; `flumen delivery resume` makes it anew, with objects of other \
         names"
    )]
    SpoolLost {
        /// The cut.
        cut: u64,
        /// What was found.
        detail: String,
    },
}

impl From<SpoolError> for Trouble {
    fn from(error: SpoolError) -> Self {
        Self::Fill(error.into())
    }
}

impl Trouble {
    /// Stable, for programs.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Store(error) => error.reason(),
            Self::Fill(FillError::Spool(error)) => error.reason(),
            Self::Fill(FillError::Io(_)) => "spool",
            Self::Node(error) => error.reason(),
            Self::DeadLetters(_) => "dead_letters",
            Self::Transform(_) => "transform",
            Self::Settings(_) => "settings",
            Self::Bug => "bug",
            Self::Progress(_) => "progress",
            Self::SpoolLost { .. } => "spool_lost",
            Self::Forked { .. } => "conflict",
        }
    }

    /// Whether trying again cannot mend it: it stops, until somebody resumes or updates it. A refusal
    /// of the store is not among these: a policy may be changed any time.
    pub(crate) fn is_permanent(&self) -> bool {
        match self {
            Self::Store(error) => {
                error.is_permanent() && !matches!(error, StoreError::Refused { .. })
            }
            Self::Bug
            | Self::Settings(_)
            | Self::Progress(_)
            | Self::SpoolLost { .. }
            | Self::Forked { .. } => true,
            Self::Node(error) => matches!(error, Error::StreamReplaced { .. }),
            Self::Fill(_) | Self::DeadLetters(_) | Self::Transform(_) => false,
        }
    }

    /// Whether a name that is needed is taken by something else: names of another life are free.
    pub(crate) fn is_conflict(&self) -> bool {
        matches!(
            self,
            Self::Forked { .. } | Self::Store(StoreError::Conflict { .. })
        )
    }

    /// Whether the node ends, so that there is nobody to tell.
    pub(crate) fn is_end(&self) -> bool {
        matches!(self, Self::Node(Error::Draining))
    }
}
