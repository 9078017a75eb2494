//! From errors to exit codes and one line for a person.

use std::process::ExitCode;

use flumen_client::Code;
use thiserror::Error;

use crate::output::{OutputError, complain};

/// Something about how the command was typed.
#[derive(Debug, Error)]
#[error("{0}")]
pub(crate) struct UsageError(pub(crate) String);

/// A usage error as `anyhow` carries it.
pub(crate) fn usage(text: impl Into<String>) -> anyhow::Error {
    UsageError(text.into()).into()
}

/// The command did what it should and found something bad, and has said so already.
#[derive(Debug, Clone, Copy, Error)]
#[error("failed")]
pub(crate) struct AlreadySaid;

/// Says what went wrong, unless it is nothing, and chooses the exit code: 0 done, 1 failed, 2 usage.
pub(crate) fn conclude(outcome: anyhow::Result<()>) -> ExitCode {
    let Err(error) = outcome else {
        return ExitCode::SUCCESS;
    };
    if error
        .chain()
        .any(|cause| matches!(cause.downcast_ref(), Some(OutputError::Closed)))
    {
        return ExitCode::SUCCESS;
    }
    if error.is::<AlreadySaid>() {
        return ExitCode::FAILURE;
    }
    complain(&in_one_line(&error));
    if error.is::<UsageError>() {
        ExitCode::from(2)
    } else {
        ExitCode::FAILURE
    }
}

/// The causes, outermost first, leaving out what the one before has said already.
fn in_one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let text = cause.to_string();
        if line.is_empty() {
            line = text;
        } else if !line.contains(&text) {
            line = format!("{line}: {text}");
        }
    }
    line
}

/// A client's error with the next thing to try where nobody answered.
pub(crate) fn of_client(error: flumen_client::Error, endpoint: &str) -> anyhow::Error {
    if error.code() == Code::Unavailable && error.reason().is_empty() {
        anyhow::anyhow!(
            "no broker answers at {endpoint} ({}); start one with `flumen serve`, or name one with \
             --endpoint",
            error.message()
        )
    } else {
        error.into()
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn causes_are_joined_once() {
        let io = std::io::Error::other("disk on fire");
        let error = Err::<(), _>(io)
            .context("reading a.csv")
            .context("produce")
            .unwrap_err();
        assert_eq!(in_one_line(&error), "produce: reading a.csv: disk on fire");
        let repeated = anyhow::anyhow!("disk on fire").context("a: disk on fire");
        assert_eq!(in_one_line(&repeated), "a: disk on fire");
    }

    #[test]
    fn a_reader_that_left_is_no_failure() {
        let closed = Err::<(), _>(OutputError::Closed).context("consume");
        assert_eq!(conclude(closed), ExitCode::SUCCESS);
    }
}
