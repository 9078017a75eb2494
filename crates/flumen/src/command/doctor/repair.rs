//! `flumen doctor repair`: what does not open is made fit for use again.

use std::path::Path;

use anyhow::Result;
use serde_json::json;

use crate::cli::Context;
use crate::failure::AlreadySaid;
use crate::output::Paint;
use crate::repair::{Repair, Wanted, repair};

/// Arguments of `doctor repair`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only show what would be done and what is lost
    #[arg(long)]
    dry_run: bool,
    /// Go on though records remain in logs of which the repaired catalog does not know the stream: the
    /// next start of the broker deletes them
    #[arg(long)]
    accept_loss: bool,
}

/// Runs the command.
pub(super) fn run(context: &mut Context, args: &Args, data_dir: &Path) -> Result<()> {
    context.output.progress("reading …");
    let wanted = Wanted {
        dry_run: args.dry_run,
        accept_loss: args.accept_loss,
    };
    let Repair {
        steps,
        blocked,
        copies,
    } = repair(data_dir, wanted)?;
    let output = &mut context.output;
    for step in &steps {
        if output.is_json() {
            output.json(&json!({
                "file": step.file,
                "action": step.action,
                "lost": step.lost,
                "done": !args.dry_run && blocked.is_none(),
            }))?;
            continue;
        }
        output.line(&format!("{}: {}", step.file, step.action))?;
        for lost in &step.lost {
            let line = output.paint(Paint::Bad, &format!("  lost: {lost}"));
            output.line(&line)?;
        }
    }
    if !output.is_json() {
        let verdict = match (&blocked, steps.len()) {
            (Some(_), _) => "nothing was changed".to_owned(),
            (None, 0) => "nothing to repair".to_owned(),
            (None, _) if args.dry_run => "nothing was changed (--dry-run)".to_owned(),
            (None, _) => "repaired".to_owned(),
        };
        let copies = copies.map_or_else(String::new, |dir| format!("; copies are in {dir}"));
        output.line(&format!("{}: {verdict}{copies}", data_dir.display()))?;
    }
    match blocked {
        Some(why) => {
            output.line(&output.paint(Paint::Bad, &why))?;
            Err(AlreadySaid.into())
        }
        None => Ok(()),
    }
}
