//! `flumen clock`: confirm.

use std::time::Duration;

use anyhow::Result;
use clap::Subcommand;
use serde_json::json;

use super::block_on;
use crate::cli::Context;
use crate::failure::of_client;
use crate::quantity::duration;

/// The verbs of `clock`.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Believe the wall clock of the broker's machine as it stands: look at it first
    Confirm,
}

/// Runs the command.
pub(crate) fn run(context: &mut Context, verb: &Verb) -> Result<()> {
    let Verb::Confirm = verb;
    let jump = block_on(async {
        let confirmed = context.client()?.confirm_clock().await;
        confirmed.map_err(|error| of_client(error, context.endpoint()))
    })?;
    let said = match Duration::from_micros(jump.unsigned_abs()) {
        Duration::ZERO => "the wall clock is believed".to_owned(),
        off => {
            let direction = if jump > 0 { "ahead" } else { "behind" };
            let off = duration(off);
            format!("the wall clock is believed from now on; it was {off} {direction}")
        }
    };
    let output = &mut context.output;
    if output.is_json() {
        return Ok(output.json(&json!({ "jump_us": jump }))?);
    }
    Ok(output.line(&said)?)
}
